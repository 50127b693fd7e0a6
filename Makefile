# make bench: the benchmark, with its table, CSV and pictures.   make test: the tests.
# Both set up .venv, build the native library and need nothing but python3, a C++17 compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*/*) setup.py aablur/schemas.py
TORCH := torch==2.13.0
VARIANTS := sanitize machine_code
export AABLUR_CUDA_ARCHS ?= 90
# Where there is nvcc, kernels that it refuses are an error here; an install goes on without them.
export AABLUR_CUDA ?= $(if $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null),1)

.PHONY: bench test fuzz lint paper pretrained codegen gpu variants clean
.DELETE_ON_ERROR:

SANITIZED = LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 AABLUR_LIBRARY=$(CURDIR)/build/sanitize/libaablur.so

bench: aablur/libaablur.so
	$(BIN)/python -m benchmarks $(BENCH)

test: aablur/libaablur.so variants
	$(BIN)/python -m pytest tests -n 2 --dist loadfile $(PYTEST)
	@echo "the same cases with the Triton kernels in Triton's interpreter"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/test_correct.py -k triton -n 2 $(PYTEST)
	@echo "the same cases under AddressSanitizer and UndefinedBehaviorSanitizer"
	$(SANITIZED) $(BIN)/python -m pytest tests/test_correct.py -k "not reference" -n 2 $(PYTEST)
	@echo "the same cases as machine code of GPU kernels, executed on the CPU: CUDA's all, Triton's a part"
	$(BIN)/python -m benchmarks.codegen.interpreter -m pytest tests/test_correct.py -k "not reference" -n 2 \
	$(if $(AABLUR_CUDA),,-k triton) $(PYTEST)

# Random cases for so many hours, of each library that is built: tests/fuzz.py.
HOURS ?= 1
fuzz: aablur/libaablur.so
	$(BIN)/python tests/fuzz.py --hours $(HOURS)
	[ ! -e build/sanitize/libaablur.so ] || $(SANITIZED) $(BIN)/python tests/fuzz.py --hours $(HOURS)
	[ ! -e build/machine_code/libaablur.so ] || \
	$(BIN)/python -m benchmarks.codegen.interpreter tests/fuzz.py --hours $(HOURS)

lint: $(VENV)/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror csrc/*/* benchmarks/codegen/*.cu benchmarks/codegen/*.cpp tests/sass/*.h tests/sass/*.cpp

# Everything that needs an NVIDIA GPU, in the environment of PYTHON: torch, pytest and ninja are there, nothing is fetched.
ARCH = $$($(PYTHON) -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
SIDE_BY_SIDE = $$($(PYTHON) -c 'import xdist' 2>/dev/null && printf -- '-n 8')
gpu:
	AABLUR_NATIVE=1 AABLUR_CUDA=1 AABLUR_CUDA_ARCHS="$(ARCH)" $(PYTHON) setup.py --quiet build_ext --inplace
	$(PYTHON) -m pytest tests/test_correct.py tests/test_cuda.py -k "cuda or triton" -p no:cacheprovider $(SIDE_BY_SIDE) $(PYTEST)
	if command -v compute-sanitizer; then for tool in memcheck racecheck; do \
	compute-sanitizer --tool $$tool --error-exitcode 1 $(PYTHON) -m pytest tests/test_correct.py \
	-k "cuda and tile and 16x21x18 and k3 and bf16" -p no:cacheprovider || exit 1; done; fi
	$(PYTHON) -m benchmarks.gpu $(BENCH)

# The paper's claims on small real data: docs/paper.md and its figures, from nothing, in some 10 minutes on two cores.
paper: aablur/libaablur.so
	$(BIN)/python -m benchmarks.paper $(PAPER)

# A pretrained network on real photographs: docs/pretrained.md and its figure, in some ten minutes.
pretrained: aablur/libaablur.so
	$(BIN)/python -m benchmarks.pretrained

codegen: $(VENV)/done
	$(BIN)/python -m benchmarks.codegen

variants: $(VENV)/done
	for variant in $(VARIANTS); do AABLUR_VARIANT=$$variant $(BIN)/python setup.py --quiet build_ext || exit 1; done

aablur/libaablur.so: $(VENV)/done $(SOURCES)
	AABLUR_NATIVE=1 $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/done: requirements-dev.txt requirements-peers.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-peers.txt
	@touch $@

clean:
	rm -rf build aablur/libaablur.so *.egg-info
