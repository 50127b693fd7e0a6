# make bench: the benchmark, with its table, CSV and pictures.   make test: the tests.   Both of the GPU, where there is one.
# Both set up .venv, build the native library and need nothing but python3, a C++17 compiler and make.
PYTHON ?= python3
# make test TORCH=2.14.1: another torch, in an environment of its own, beside the Triton that it brings itself.
PINNED := 2.13.0
TORCH := $(PINNED)
TORCHVISION_2.14.1 := 0.29.1
VENV := .venv$(addprefix -,$(filter-out $(PINNED),$(TORCH)))
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*/*) setup.py aablur/schemas.py
VARIANTS := sanitize machine_code
# The architectures of the cards here; where there is none, that which is executed on the CPU.
CARDS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | grep -xE '[0-9]+' | sort -nu | paste -sd ';')
export AABLUR_CUDA_ARCHS ?= $(or $(CARDS),90)
export AABLUR_WERROR := 1
# Where there is nvcc, kernels that it refuses are an error here; an install goes on without them.
export AABLUR_CUDA ?= $(if $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null),1)

.PHONY: bench test fuzz lint paper pretrained codegen gpu gpu-library gpu-test gpu-sanitize gpu-bench variants clean FORCE
.DELETE_ON_ERROR:
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

UNDER_SANITIZERS = LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 AABLUR_LIBRARY=$(CURDIR)/build/sanitize/libaablur.so

bench: aablur/libaablur.so
	$(BIN)/python -m benchmarks $(BENCH)

test: aablur/libaablur.so variants
	$(BIN)/python -m pytest tests -n 2 --dist loadfile $(PYTEST)
	@echo "the same cases with the Triton kernels in Triton's interpreter"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/test_correct.py -k triton -n 2 $(PYTEST)
	@echo "the same cases under AddressSanitizer and UndefinedBehaviorSanitizer"
	$(UNDER_SANITIZERS) $(BIN)/python -m pytest tests/test_correct.py -k "not reference" -n 2 $(PYTEST)
	@echo "the same cases as machine code of GPU kernels, executed on the CPU: CUDA's all (codes made once more: of pools), Triton's a part"
	$(BIN)/python -m benchmarks.codegen.interpreter -m pytest tests/test_correct.py -n 2 \
	-k "not reference and (not recompute or pool) $(if $(AABLUR_CUDA),,and triton)" \
	$(or $(PYTEST),$(if $(AABLUR_CUDA),--all-kernels))

# Random cases for so many hours, of each library that is built: tests/fuzz.py.
HOURS ?= 1
fuzz: aablur/libaablur.so
	$(BIN)/python tests/fuzz.py --hours $(HOURS)
	[ ! -e build/sanitize/libaablur.so ] || $(UNDER_SANITIZERS) $(BIN)/python tests/fuzz.py --hours $(HOURS)
	[ ! -e build/machine_code/libaablur.so ] || \
	$(BIN)/python -m benchmarks.codegen.interpreter tests/fuzz.py --hours $(HOURS)

lint: $(VENV)/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror csrc/*/* benchmarks/codegen/*.cu benchmarks/codegen/*.cpp tests/sass/*.h tests/sass/*.cpp

# What needs an NVIDIA GPU, in the environment of PYTHON, which has torch and pytest (ninja, where the library is to be
# built); nothing is fetched. Each takes under 8 minutes and leaves its results in OUT, whatever fails. DRY_RUN=1 goes
# through all of it on a CPU.
OUT ?= build/gpu
ALONE := -p no:cacheprovider
SIDE_BY_SIDE = $$($(PYTHON) -c 'import xdist' 2>/dev/null && printf -- '-n $(if $(DRY_RUN),2,8)')
SEEN_BY_TORCH = $$($(PYTHON) -c 'import torch; cards = range(torch.cuda.device_count()); \
	print(*sorted({"%d%d" % torch.cuda.get_device_capability(i) for i in cards}), sep=";")')
LIMITED := timeout --signal=INT --kill-after=20
GPU_TESTS := tests/test_correct.py $(if $(DRY_RUN),,tests/test_cuda.py)
GPU_CASES := $(if $(DRY_RUN),native and tile and 2x2x22x32 and k3-s2,cuda or triton)
# Cases of kernels with shared memory: planes, their bands, tables of weights.
SANITIZED := $(if $(DRY_RUN),native,cuda) and (shared and 2x5x31x9 and bf16 or pool and 1x3x21x18 or tile and 16x21x18 and k3 and bf16)

gpu:
	status=0; for part in test sanitize bench; do $(MAKE) gpu-$$part || status=1; done; exit $$status

# A library that serves the card, one built before or AABLUR_LIBRARY, is used as it is.
gpu-library:
	@mkdir -p $(OUT)
	$(PYTHON) -W ignore -c 'import sys; from aablur import backends; sys.exit(backends.why_not("$(if $(DRY_RUN),cpu,cuda)"))' || \
	{ test -z "$$AABLUR_LIBRARY" && AABLUR_NATIVE=1 $(if $(DRY_RUN),,AABLUR_CUDA=1 AABLUR_CUDA_ARCHS="$(SEEN_BY_TORCH)") \
	$(PYTHON) setup.py --quiet build_ext --inplace; }

gpu-test: gpu-library
	$(LIMITED) 420 $(PYTHON) -m pytest $(GPU_TESTS) -k "$(GPU_CASES)" --junitxml=$(OUT)/test.xml $(ALONE) $(SIDE_BY_SIDE) $(PYTEST)

# Without torch's allocator, which would hide an access beyond a tensor in a block of its own.
gpu-sanitize: gpu-library
	status=0; for tool in memcheck racecheck; do PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(LIMITED) 220 \
	compute-sanitizer --tool $$tool --error-exitcode 1 --log-file $(OUT)/$$tool.log $(PYTHON) -m pytest \
	tests/test_correct.py -k "$(SANITIZED)" --junitxml=$(OUT)/$$tool.xml $(ALONE) $(PYTEST) || status=1; done; exit $$status

gpu-bench: gpu-library
	$(LIMITED) 460 $(PYTHON) -m benchmarks --device cuda --out $(OUT) $(if $(DRY_RUN),--dry-run,--seconds 380) $(BENCH)

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

# Written anew where the cards are others than those that the library was built for.
build/architectures: FORCE
	@mkdir -p build; echo '$(AABLUR_CUDA_ARCHS)' | cmp -s - $@ || echo '$(AABLUR_CUDA_ARCHS)' > $@

aablur/libaablur.so: $(VENV)/done $(SOURCES) build/architectures
	AABLUR_NATIVE=1 $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/done: requirements-dev.txt requirements-peers.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch==$(TORCH)
	$(INSTALL) -r requirements-dev.txt
	grep -v '$(if $(filter-out $(PINNED),$(TORCH)),^\(triton\|torchvision\)==,^$$)' requirements-peers.txt > $(VENV)/peers.txt
	$(INSTALL) --no-deps -r $(VENV)/peers.txt $(addprefix torchvision==,$(TORCHVISION_$(TORCH)))
	@touch $@

clean:
	rm -rf build aablur/libaablur.so *.egg-info
