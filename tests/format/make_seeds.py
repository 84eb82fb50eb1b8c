"""Write the sound little files that csrc/tests/test_reader.cpp and fuzz_reader.cpp damage.

python tests/format/make_seeds.py FOLDER
"""

import sys
from pathlib import Path

from conftest import write_seeds

write_seeds(Path(sys.argv[1]))
