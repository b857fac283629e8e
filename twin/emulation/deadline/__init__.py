"""SCHED_DEADLINE on this host: reservations of threads, their monitor, and the periods of what they run.

Standard library only, apart from :mod:`twin.emulation.deadline.periods`, which loads numpy with its first thread.
"""
