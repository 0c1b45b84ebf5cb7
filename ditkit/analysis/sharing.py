"""Encoder sharing: measure how alike s is from step to step, and make schedules of it (DDT, section 3.4)."""

from __future__ import annotations

from ditkit.analysis.schedule import cumulative_error, optimal_schedule, schedule_cost, sharing_schedule

__all__ = ["cumulative_error", "optimal_schedule", "schedule_cost", "sharing_schedule"]
