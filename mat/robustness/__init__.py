"""Accuracy under universal patch attacks: plan -> fit -> score -> report."""
