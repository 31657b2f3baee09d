"""Answers as ``virt-introspect`` would: what ``answers.json`` beside it says.

A key is a whole command line, without the options in front of the command, or the command alone.
"""

import json
import sys
import time

here = sys.argv[0].rpartition("/")[0]
with open(f"{here}/log", "a") as log:  # noqa: PTH123 - pathlib takes longer than all of this
    log.write(json.dumps(sys.argv[1:]) + "\n")
words = sys.argv[1:]
while words and words[0] in ("-o", "-c"):
    del words[:2]
with open(f"{here}/answers.json") as file:  # noqa: PTH123
    answers = json.load(file)
answer = answers.get(" ".join(words)) or answers.get(words[0])
if answer is None:
    sys.stderr.write(
        "Usage: virt-introspect [OPTIONS] COMMAND [ARGS]...\n"
        "Try 'virt-introspect -h' for help.\n\n"
        f"Error: No such command '{words[0]}'.\n"
    )
    sys.exit(2)
time.sleep(answer.get("sleep", 0))
out = answer.get("out", "")
sys.stdout.write(out if isinstance(out, str) else json.dumps(out))
sys.stderr.write(answer.get("err", ""))
sys.exit(answer.get("rc", 0))
