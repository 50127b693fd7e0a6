# make bench: the benchmark, with its table, CSV and pictures.   make test: the tests.
# Both set up .venv, build the native library and need nothing but python3, a C++17 compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*) setup.py aablur/schemas.py
TORCH := torch==2.13.0

.PHONY: bench test lint sanitize clean
.DELETE_ON_ERROR:

bench: aablur/libaablur.so
	$(BIN)/python -m benchmarks $(BENCH)

test: aablur/libaablur.so sanitize
	$(BIN)/python -m pytest tests $(PYTEST)
	@echo "the same cases under AddressSanitizer and UndefinedBehaviorSanitizer"
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 AABLUR_LIBRARY=$(CURDIR)/build/sanitize/libaablur.so \
	$(BIN)/python -m pytest tests/test_correct.py -k "not reference" $(PYTEST)

lint: $(VENV)/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp

sanitize: $(VENV)/done
	AABLUR_SANITIZE=1 $(BIN)/python setup.py --quiet build_ext

aablur/libaablur.so: $(VENV)/done $(SOURCES)
	AABLUR_NATIVE=1 $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/done: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf build aablur/libaablur.so *.egg-info
