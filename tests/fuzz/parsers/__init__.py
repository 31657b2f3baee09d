"""Every parser of what a stranger may have written, and bad input for each.

A :class:`~tests.fuzz.parsers.target.Target` has good input to start from and a function that does
all that is done with such input. What it may do is the same for all: give a result, or an error of
virtintrospect's own, within :data:`~tests.fuzz.parsers.watch.SECONDS` and
:data:`~tests.fuzz.parsers.watch.GROWTH`.
"""
