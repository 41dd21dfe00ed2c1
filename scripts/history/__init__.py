"""Faults against real processes under clients that record a history: see scripts/history_test.py."""
