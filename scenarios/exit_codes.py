"""What the exit code of ``twin`` says. The only place where the numbers are written."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line; ``meaning`` is what the reference page prints."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    OK = (
        0,
        "success; of a run: VALID, and every assertion holds; of two (--slicing both): the worse of both, "
        "with the assertions of the run with slicing only",
    )
    FAILED = (
        1,
        "the run FAILED (network lost, controller unusable), the disk is full, an assertion does not hold, "
        "no allocation reaches the thresholds (twin slice-opt solve), or a bug",
    )
    USAGE = 2, "bad input: unknown option or name, a mistake in a scenario or trace, no such run"
    INVALID = 3, "the run is INVALID: the host did not deliver what the scenario declares (the probes say what)"
    MISSING = 4, "the host lacks something that the command needs (twin doctor says what, and what it would unlock)"
    SIGHUP = 129, "ended by SIGHUP; nothing is left on the host"
    SIGINT = 130, "ended by SIGINT (Ctrl-C); nothing is left on the host"
    SIGTERM = 143, "ended by SIGTERM; nothing is left on the host"
