/* What they do: states, threads, parents, memory. */
#include "child.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void zombie_parent(void)
{
	siginfo_t info;
	pid_t pid = spawn("zombie", NULL);

	kill(pid, SIGKILL);
	TRY(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
}

static void orphan_parent(void)
{
	spawn("orphan", NULL);
	_exit(0); /* init inherits the orphan */
}

static void stop_me(void)
{
	ready();
	raise(SIGSTOP);
}

static void traced(void)
{
	TRY(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
	ready();
	raise(SIGSTOP);
}

static void tracer(void)
{
	pid_t pid = spawn("traced", traced);

	TRY(waitpid(pid, NULL, 0));
}

/* A parent waits for its vfork child's exec in TASK_UNINTERRUPTIBLE | TASK_WAKEKILL: "D". */
static void uninterruptible(void)
{
	if (vfork() == 0) {
		prctl(PR_SET_NAME, "vfork-child");
		ready();
		rest();
	}
}

static void *thread_rests(void *name)
{
	prctl(PR_SET_NAME, name);
	rest();
	return NULL;
}

static void wait_for_name(pthread_t thread, const char *name)
{
	char found[16];

	do {
		sched_yield();
		pthread_getname_np(thread, found, sizeof found);
	} while (strncmp(found, name, 15));
}

static void add_thread(const char *name)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, thread_rests, (void *)name) == 0)
		wait_for_name(thread, name);
}

static void threads(void)
{
	add_thread("worker-one");
	add_thread("worker-two");
	add_thread("\x1b[5mblink");
	add_thread("paren) R (end");
}

static void *outlives_leader(void *unused)
{
	char path[64], state = 0;

	(void)unused;
	prctl(PR_SET_NAME, "survivor");
	snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
	while (state != 'Z') {
		FILE *stat = fopen(path, "re");

		if (!stat || fscanf(stat, "%*d %*[^)]) %c", &state) != 1)
			break;
		fclose(stat);
		usleep(2000);
	}
	ready();
	rest();
	return NULL;
}

/* A leader that is gone while a thread lives on: state Z, yet a living process. */
static void dead_leader(void)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, outlives_leader, NULL) == 0)
		syscall(SYS_exit, 0);
}

static char *touch(char *area, size_t size)
{
	for (size_t at = 0; at < size; at += 4096)
		area[at] = 'm';
	return area;
}

static void memory_user(void)
{
	size_t mib = 1 << 20;
	int file = open("/lab/workload", O_RDONLY | O_CLOEXEC);
	volatile char sum = 0;
	char *mapped;

	touch(mmap(NULL, 8 * mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 8 * mib);
	touch(mmap(NULL, 3 * mib, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 3 * mib);
	mmap(NULL, 64 * mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mapped = mmap(NULL, 500000, PROT_READ, MAP_PRIVATE, file, 0);
	for (size_t at = 0; at < 500000; at += 4096)
		sum += mapped[at];
}

static void locker(void) { TRY(mlockall(MCL_CURRENT | MCL_FUTURE)); }

static void spin(void)
{
	ready();
	for (;;)
		;
}

/* Used up processor time that can be compared: half in user space, half in the kernel. */
static void time_user(void)
{
	struct rusage used;

	do {
		for (volatile int i = 0; i < 100000; i++)
			;
		for (int i = 0; i < 200; i++)
			getppid();
		getrusage(RUSAGE_SELF, &used);
	} while (used.ru_utime.tv_sec * 1000000 + used.ru_utime.tv_usec < 150000);
}

static void states(void)
{
	pid_t pid;

	spawn("zombie-parent", zombie_parent);
	pid = spawn("orphan-parent", orphan_parent);
	waitpid(pid, NULL, 0);
	pid = spawn("stopped", stop_me);
	waitpid(pid, NULL, WUNTRACED);
	spawn("tracer", tracer);
	spawn("uninterruptible", uninterruptible);
	spawn("threads", threads);
	spawn("dead-leader", dead_leader);
	spawn("memory-user", memory_user);
	spawn("locker", locker);
	spawn("time-user", time_user);
	for (long i = lab_option("busy", 0); i > 0; i--)
		spawn("busy", spin);
}
