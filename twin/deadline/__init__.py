"""Reservations of CPU time as formulas: what they supply, which budget a thread needs, whether it is periodic.

Nothing here touches a host; time is an argument everywhere. :mod:`twin.emulation.deadline` applies it to threads.
"""
