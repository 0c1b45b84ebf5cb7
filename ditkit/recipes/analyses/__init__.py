"""Looks into trained models: each analysis measures, and tells what it found in numbers, drawings and words."""
