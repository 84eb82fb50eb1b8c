"""`python -m penjing`: the command line of this very interpreter, where its script is not on the PATH."""

from penjing.cli import main

if __name__ == "__main__":
    main()
