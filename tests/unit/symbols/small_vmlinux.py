"""A small stand-in for a vmlinux: a C program with debug information, compiled here.

It says itself where its members are, which is what the types read from it are compared with. A
distribution's own vmlinux has hundreds of MiB; docs/kernels-without-btf.md tells how those fare.
"""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

BUILD_ID = bytes(range(0x30, 0x44))
BASE = 0x1000_0000
BANNER = "Linux version 6.1.99-small (nobody@nowhere) #1 SMP"

_SOURCE = r"""
#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef unsigned int u32;
typedef struct { u32 val; } kuid_t;
struct list_head { struct list_head *next, *prev; };
struct cred { int usage; kuid_t uid; };
enum pid_type { PIDTYPE_PID, PIDTYPE_TGID = 7, PIDTYPE_LAST = -3 };
enum large { LARGE_ONE = 1, LARGE_ALL = 0xffffffffffffffffUL };
struct never_defined;
struct task_struct {
    volatile long state;
    char comm[16];
    struct list_head tasks;
    const struct cred *cred;
    unsigned int early : 3, late : 7;
    int sign : 5;
    union { unsigned long raw; struct { u32 low, high; }; };
    u32 grid[3][5];
    int (*function)(struct task_struct *, const char *, ...);
    struct never_defined *other;
    enum pid_type kind;
    double real;
    _Bool yes;
    unsigned long long wide : 40;
    char tail[];
};
struct packed { char one; long two; } __attribute__((packed));

struct task_struct init_task;
struct packed packed;
enum large large;
const char linux_banner[] = "Linux version 6.1.99-small (nobody@nowhere) #1 SMP\n";
static int counter;

#define SHOW(type, path) \
    printf(#type " " #path " %zu %zu\n", offsetof(struct type, path), \
           sizeof(((struct type *)0)->path))
#define FIELD(name) do { \
    struct task_struct t; unsigned char *p = (void *)&t; size_t i; \
    memset(&t, 0, sizeof t); t.name = -1; \
    printf("field " #name " "); \
    for (i = 0; i < sizeof t; i++) printf("%02x", p[i]); \
    printf("\n"); } while (0)

int main(void)
{
    counter++;
    SHOW(task_struct, state); SHOW(task_struct, comm); SHOW(task_struct, tasks.prev);
    SHOW(task_struct, cred); SHOW(task_struct, raw); SHOW(task_struct, high);
    SHOW(task_struct, grid); SHOW(task_struct, grid[1][2]); SHOW(task_struct, function);
    SHOW(task_struct, other); SHOW(task_struct, kind); SHOW(task_struct, real);
    SHOW(task_struct, yes); SHOW(cred, uid); SHOW(cred, uid.val); SHOW(packed, two);
    FIELD(early); FIELD(late); FIELD(sign); FIELD(wide);
    printf("size task_struct %zu\nsize packed %zu\n", sizeof init_task, sizeof packed);
    printf("symbol init_task %p\n", (void *)&init_task);
    printf("symbol linux_banner %p\n", (void *)linux_banner);
    printf("local counter %p\n", (void *)&counter);
    return 0;
}
"""


@cache
def small_vmlinux(*options: str) -> tuple[bytes, list[list[str]]]:
    """The file, and what the program says of itself: lines of words.

    :param options: of gcc, e.g. ``-gdwarf-4``.
    """
    with TemporaryDirectory() as folder:
        source, program = Path(folder, "small.c"), Path(folder, "small")
        source.write_text(_SOURCE)
        subprocess.run(
            [
                "gcc", "-w", "-O1", "-no-pie", *options, f"-Wl,-Ttext-segment={BASE:#x}",
                f"-Wl,--defsym=_text={BASE:#x}", f"-Wl,--build-id=0x{BUILD_ID.hex()}",
                "-o", str(program), str(source),
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        said = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
        return program.read_bytes(), [line.split() for line in said.splitlines()]
