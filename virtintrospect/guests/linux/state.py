"""Task states (include/linux/sched.h, ``task_state_index()``)."""

from __future__ import annotations

#: Letters by the highest bit that is set, the first for none (TASK_STATE_TO_CHAR_STR).
_LETTERS = "RSDTtXZP"
#: TASK_REPORT: the bits that show; TASK_PARKED is the highest.
_REPORT = 0x7F
_UNINTERRUPTIBLE = 0x0002
_NOLOAD = 0x0400
_RTLOCK_WAIT = 0x1000
_FROZEN = 0x8000


def state_letter(state: int, exit_state: int) -> str:
    """The letter of /proc/PID/stat.

    A task that waits without counting as load is idle (``I``); one that waits for a PREEMPT_RT
    lock or is frozen shows as ``D``.
    """
    if state & (_UNINTERRUPTIBLE | _NOLOAD) == _UNINTERRUPTIBLE | _NOLOAD:
        return "I"
    if state & (_RTLOCK_WAIT | _FROZEN):
        state |= _UNINTERRUPTIBLE
    index = ((state | exit_state) & _REPORT).bit_length()
    return _LETTERS[index] if index < len(_LETTERS) else "?"
