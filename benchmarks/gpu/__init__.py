"""The benchmark on an NVIDIA GPU: python -m benchmarks.gpu. It needs torch alone (pictures: matplotlib)."""
