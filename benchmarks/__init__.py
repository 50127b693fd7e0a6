"""What is timed, against whom, and how.

``python -m benchmarks`` (or ``make bench``) measures every workload, checks each result against
float64 before it is timed, and leaves a CSV and pictures in ``benchmarks/results``.
``pytest benchmarks`` runs a part of the same workloads under pytest-benchmark.
"""
