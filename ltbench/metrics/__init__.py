"""Metrics: extractors turn images into features; everything else is a pure function of features."""
