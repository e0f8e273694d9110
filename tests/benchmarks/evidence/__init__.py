"""The parts of gpu_evidence.py."""
