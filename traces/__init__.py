"""Demand over time as data: readers of published traces and generators with known statistics."""
