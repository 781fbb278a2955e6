"""The statistics that gates are made of: bounds, exact tests, rank tests, many tests at once.

Pure functions of numbers; nothing here knows a rollout.
"""
