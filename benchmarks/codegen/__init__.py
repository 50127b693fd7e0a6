"""The machine code of the hot GPU kernels, read with no GPU: `python -m benchmarks.codegen`."""
