"""What is timed, against whom, and how, on a CPU and on an NVIDIA GPU.

``python -m benchmarks`` (or ``make bench``) measures every workload of a device, checks each result against float64
before it is timed, and leaves a CSV and plots in ``benchmarks/results``. ``pytest benchmarks`` runs a part of the
workloads under pytest-benchmark. `workloads.py`, `providers.py` and `devices.py` are the registries; `record.py` has
the columns.
"""
