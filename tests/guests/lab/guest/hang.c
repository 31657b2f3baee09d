/*
 * Brings tasks of a guest into state D, or a CPU to a standstill.
 *
 * hang freeze|thaw DIRECTORY   FIFREEZE, FITHAW
 * hang write FILE              waits for FILE.go, then two processes write by one descriptor
 * hang spin SECONDS            a real-time task that leaves its CPU to nobody else
 */
#include "lab.h"
#include <linux/fs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>

static int freeze(const char *path, unsigned long what)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY);

	if (fd < 0 || ioctl(fd, what, 0)) {
		perror(path);
		return 1;
	}
	return 0;
}

/* The first to write takes the position's mutex along into its wait; the second wants it. */
static int write_twice(const char *path)
{
	char go[256];
	struct stat status;
	int fd = open(path, O_RDWR | O_CREAT, 0644);

	snprintf(go, sizeof go, "%s.go", path);
	while (stat(go, &status))
		usleep(20000);
	if (fork() == 0)
		usleep(700000);
	return write(fd, "x", 1) != 1;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static int spin(double seconds)
{
	struct sched_param highest = { .sched_priority = 99 };
	double end;

	if (sched_setscheduler(0, SCHED_FIFO, &highest)) {
		perror("SCHED_FIFO");
		return 1;
	}
	for (end = now() + seconds; now() < end;)
		;
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	if (!strcmp(argv[1], "freeze"))
		return freeze(argv[2], FIFREEZE);
	if (!strcmp(argv[1], "thaw"))
		return freeze(argv[2], FITHAW);
	if (!strcmp(argv[1], "write"))
		return write_twice(argv[2]);
	return spin(atof(argv[2]));
}
