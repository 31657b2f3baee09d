/*
 * Puts a guest into a state that hints are about, until it is killed:
 *
 *   load touch MIB          works in so much memory, over and over
 *   load work MIB           as touch, without a pause
 *   load grow MIB           takes so much more a second: a leak
 *   load spin THREADS       computes
 *   load threads COUNT      has threads that rest
 *   load zombies COUNT      leaves children that it does not wait for
 *   load write FILE MIB     writes a file anew, over and over, each time to the disk
 *   load dirty FILE MIB     writes a file once, and keeps it open
 *   load wake HZ            sleeps, and wakes so often a second
 *   load fill SEED MIB      has memory whose content depends on the seed alone
 *   load uncounted ENTRIES  could read files so that no sum of the kernel's has it
 *   load packets SOCKETS    sends itself packets that so many look at, and each for long
 *
 * When it is in that state, /tmp/load.ready is there.
 */
#define _GNU_SOURCE
#include "lab.h"
#include <linux/bpf.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define MIB (1L << 20)

static char *take(long mib)
{
	char *memory = mmap(NULL, mib * MIB, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		exit(1);
	return memory;
}

static void dirty(char *memory, long mib)
{
	for (long at = 0; at < mib * MIB; at += 4096)
		memory[at]++;
}

static void pause_ms(long milliseconds)
{
	struct timespec time = { milliseconds / 1000, milliseconds % 1000 * 1000000 };

	nanosleep(&time, NULL);
}

static void ready(void)
{
	close(open("/tmp/load.ready", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
}

/* How often it has been through its memory, for whoever measures. */
static void count(long passes)
{
	char text[32];
	int fd = open("/tmp/load.passes", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	int length = snprintf(text, sizeof text, "%-20ld\n", passes);

	if (write(fd, text, length) != length)
		exit(1);
	close(fd);
}

static void touch(long mib, long rest)
{
	char *memory = take(mib);

	for (long passes = 1;; passes++) {
		dirty(memory, mib);
		ready();
		count(passes);
		pause_ms(rest);
	}
}

static void grow(long mib)
{
	ready();
	for (;;) { /* in small pieces: whoever looks twice finds more */
		dirty(take(1), 1);
		pause_ms(1000 / mib);
	}
}

static void *compute(void *unused)
{
	for (volatile unsigned long i = 0;; i++)
		;
	return unused;
}

static void *rest(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void run(long threads, void *(*work)(void *))
{
	pthread_t thread;

	for (long i = 1; i < threads; i++)
		if (pthread_create(&thread, NULL, work, NULL))
			exit(1);
	ready();
	work(NULL);
}

static void zombies(long count)
{
	for (long i = 0; i < count; i++)
		if (fork() == 0)
			_exit(0);
	ready();
	for (;;)
		pause();
}

static void write_file(const char *path, long mib)
{
	char *memory = take(1);

	ready();
	for (;;) {
		int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

		for (long i = 0; i < mib; i++)
			if (write(fd, memory, MIB) != MIB)
				break;
		fsync(fd);
		close(fd);
	}
}

static void dirty_file(const char *path, long mib)
{
	char *memory = take(1);
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	for (long i = 0; i < mib; i++)
		if (write(fd, memory, MIB) != MIB)
			exit(1);
	ready();
	for (;;)
		pause();
}

static void wake(long hertz)
{
	struct timespec time = { 0, 1000000000 / hertz };

	ready();
	for (;;)
		nanosleep(&time, NULL);
}

static void fill(unsigned long seed, long mib)
{
	unsigned long *memory = (unsigned long *)take(mib);

	for (long at = 0; at < mib * MIB / 8; at++) {
		seed = seed * 6364136223846793005 + 1442695040888963407;
		memory[at] = seed;
	}
	ready();
	for (;;)
		pause();
}

/* By AIO, by io_uring, and by children for which nobody waits. */
static void uncounted(long entries)
{
	unsigned long context = 0;
	char params[120] = ""; /* struct io_uring_params */

	if (syscall(SYS_io_setup, entries, &context) ||
	    syscall(SYS_io_uring_setup, entries, params) < 0 || signal(SIGCHLD, SIG_IGN) == SIG_ERR)
		exit(1);
	ready();
	for (;;)
		pause();
}

/* A program that looks at a packet for long, to find that nobody wants it. */
static int long_look(void)
{
	static struct bpf_insn code[10002];
	int last = sizeof code / sizeof *code - 1;
	union bpf_attr program = {
		.prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
		.insn_cnt = last + 1,
		.insns = (uintptr_t)code,
		.license = (uintptr_t)"GPL",
	};

	for (int i = 0; i < last; i++)
		code[i] = (struct bpf_insn){ .code = BPF_ALU64 | BPF_MOV | BPF_K, .imm = i };
	code[last - 1].imm = 0;
	code[last] = (struct bpf_insn){ .code = BPF_JMP | BPF_EXIT };
	return syscall(SYS_bpf, BPF_PROG_LOAD, &program, sizeof program);
}

/* What the packets leave of the second CPU: while it sleeps, its kernel counts no time there. */
static void *leftovers(void *unused)
{
	cpu_set_t second;

	CPU_ZERO(&second);
	CPU_SET(1, &second);
	sched_setaffinity(0, sizeof second, &second);
	setpriority(PRIO_PROCESS, syscall(SYS_gettid), 19);
	return compute(unused);
}

static void packets(long sockets)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(9) };
	int program = long_look(), one = 1, self;
	pthread_t thread;
	char byte[1];

	for (long i = 0; i < sockets; i++) {
		int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(3 /* ETH_P_ALL */));

		/* Not when they are sent, which the sender would have to wait for. */
		if (setsockopt(fd, SOL_PACKET, 23 /* PACKET_IGNORE_OUTGOING */, &one, sizeof one) ||
		    setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &program, sizeof program))
			exit(1);
	}
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	self = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (bind(self, (struct sockaddr *)&to, sizeof to))
		exit(1);
	pthread_create(&thread, NULL, leftovers, NULL);
	ready();
	/* No more on the way than these, with pauses: the agent needs that CPU, too. */
	for (;;) {
		for (int i = 0; i < 64; i++)
			sendto(self, "x", 1, 0, (struct sockaddr *)&to, sizeof to);
		for (int i = 0; i < 64; i++)
			recv(self, byte, 1, 0);
		pause_ms(1);
	}
}

int main(int argc, char **argv)
{
	const char *kind = argc > 2 ? argv[1] : "";
	long amount = argc > 2 ? strtol(argv[argc - 1], NULL, 0) : 0;

	if (!strcmp(kind, "touch"))
		touch(amount, 500);
	else if (!strcmp(kind, "work"))
		touch(amount, 0);
	else if (!strcmp(kind, "grow"))
		grow(amount);
	else if (!strcmp(kind, "spin"))
		run(amount, compute);
	else if (!strcmp(kind, "threads"))
		run(amount, rest);
	else if (!strcmp(kind, "zombies"))
		zombies(amount);
	else if (!strcmp(kind, "write") && argc == 4)
		write_file(argv[2], amount);
	else if (!strcmp(kind, "dirty") && argc == 4)
		dirty_file(argv[2], amount);
	else if (!strcmp(kind, "wake"))
		wake(amount);
	else if (!strcmp(kind, "fill") && argc == 4)
		fill(strtoul(argv[2], NULL, 0), amount);
	else if (!strcmp(kind, "uncounted"))
		uncounted(amount);
	else if (!strcmp(kind, "packets"))
		packets(amount);
	return 2;
}
