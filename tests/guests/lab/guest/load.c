/*
 * Puts a guest into a state that hints are about, until it is killed:
 *
 *   load touch MIB          works in so much memory, over and over
 *   load grow MIB           takes so much more a second: a leak
 *   load spin THREADS       computes
 *   load zombies COUNT      leaves children that it does not wait for
 *   load write FILE MIB     writes a file anew, over and over, each time to the disk
 *
 * When it is in that state, /tmp/load.ready is there.
 */
#include "lab.h"
#include <pthread.h>
#include <sys/mman.h>
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

static void touch(long mib)
{
	char *memory = take(mib);

	for (long passes = 1;; passes++) {
		dirty(memory, mib);
		ready();
		count(passes);
		pause_ms(500);
	}
}

static void grow(long mib)
{
	ready();
	for (;;) {
		dirty(take(mib), mib);
		pause_ms(1000);
	}
}

static void *compute(void *unused)
{
	for (volatile unsigned long i = 0;; i++)
		;
	return unused;
}

static void spin(long threads)
{
	pthread_t thread;

	for (long i = 1; i < threads; i++)
		pthread_create(&thread, NULL, compute, NULL);
	ready();
	compute(NULL);
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

int main(int argc, char **argv)
{
	const char *kind = argc > 2 ? argv[1] : "";
	long amount = argc > 2 ? strtol(argv[argc - 1], NULL, 0) : 0;

	if (!strcmp(kind, "touch"))
		touch(amount);
	else if (!strcmp(kind, "grow"))
		grow(amount);
	else if (!strcmp(kind, "spin"))
		spin(amount);
	else if (!strcmp(kind, "zombies"))
		zombies(amount);
	else if (!strcmp(kind, "write") && argc == 4)
		write_file(argv[2], amount);
	return 2;
}
