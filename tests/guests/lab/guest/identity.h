/* Who they are, what they are called, how they are scheduled. */
#include "child.h"
#include <grp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>

static void as_setuid(void)
{
	gid_t groups[] = { 4, 24, 27, 1000 };

	TRY(setgroups(4, groups));
	TRY(setresgid(1000, 50, 50));
	TRY(setresuid(1000, 0, 0)); /* as a setuid program that root owns: uid ≠ euid */
}

static void as_user(void)
{
	TRY(setgroups(0, NULL));
	TRY(setresgid(65534, 65534, 65534));
	TRY(setresuid(65534, 65534, 65534));
}

static void as_large_uid(void)
{
	TRY(setresgid(4000000001u, 4000000002u, 4000000003u));
	TRY(setresuid(4000000001u, 4000000002u, 4000000003u));
}

static void nice_least(void) { TRY(setpriority(PRIO_PROCESS, 0, -20)); }
static void nice_most(void) { TRY(setpriority(PRIO_PROCESS, 0, 19)); }

static void policy(int which, int priority)
{
	struct sched_param parameter = { .sched_priority = priority };

	TRY(sched_setscheduler(0, which, &parameter));
}

static void fifo(void) { policy(SCHED_FIFO, 50); }
static void fifo_top(void) { policy(SCHED_FIFO, 99); }
static void round_robin(void) { policy(SCHED_RR, 1); }
static void batch(void) { policy(SCHED_BATCH, 0); }
static void idle(void) { policy(SCHED_IDLE, 0); }

static void identities(void)
{
	spawn("setuid", as_setuid);
	spawn("user", as_user);
	spawn("large-uid", as_large_uid);
	spawn("nice-least", nice_least);
	spawn("nice-most", nice_most);
	spawn("fifo", fifo);
	spawn("fifo-top", fifo_top);
	spawn("round-robin", round_robin);
	spawn("batch", batch);
	spawn("idle", idle);
}

static void names(void)
{
	static const char *const odd[] = {
		"\x1b[31mred", "line\nfeed", "back\\slash", "a) S 1 (b", "  spaces  ",
		"\xff\xfe\x80raw", "\xc3\xa9t\xc3\xa9", "tab\tbell\a", "exactly-15-byte",
		"cut in \xe2\x82\xac\xe2\x82\xac\xe2\x82\xac", "\"quoted\",;$'`", "\xe2\x80\xae""bidi", " ", "",
		NULL
	};

	for (int i = 0; odd[i]; i++)
		spawn(odd[i], NULL);
}

static void odd_arguments(void)
{
	char *argv[] = { "odd", "\x1b]0;title\a", "line\nfeed", "", "\xff\xfe", "sp ace", "", NULL };

	become("/lab/workload", argv);
}

static void long_arguments(void)
{
	static char text[3000];
	char *argv[] = { "long", text, text, text, text, "end", NULL };

	memset(text, 'x', sizeof text - 1);
	become("/lab/workload", argv);
}

static void no_arguments(void)
{
	char *argv[] = { NULL };

	become("/lab/workload", argv);
}

/* In their program image: set by main() from its own argv, see workload.c. */
static void title_short(void) { become("/lab/workload", (char *[]){ "title-short", "abcdef", NULL }); }
static void title_long(void) { become("/lab/workload", (char *[]){ "title-long", "abcdef", NULL }); }
static void title_gone(void) { become("/lab/workload", (char *[]){ "title-gone", "abcdef", NULL }); }

static void arguments(void)
{
	spawn("-", odd_arguments);
	spawn("-", long_arguments);
	spawn("-", no_arguments);
	spawn("-", title_short);
	spawn("-", title_long);
	spawn("-", title_gone);
}

/* What programs do to their arguments once they run. */
static void retitle(char **argv)
{
	char *end = argv[1] + strlen(argv[1]);

	if (!strcmp(argv[0], "title-short")) {
		memset(argv[0], 0, end - argv[0]);
		strcpy(argv[0], "retitled");
	} else if (!strcmp(argv[0], "title-long")) {
		/* setproctitle(3): past the arguments, into the environment behind them */
		memset(argv[0], 'T', end - argv[0] + 4);
	} else if (!strcmp(argv[0], "title-gone")) {
		TRY(prctl(PR_SET_MM, PR_SET_MM_ARG_END, argv[0], 0, 0));
		TRY(prctl(PR_SET_MM, PR_SET_MM_ARG_START, argv[0], 0, 0));
	}
}
