"""Measurements of snapstore beside what people use today."""
