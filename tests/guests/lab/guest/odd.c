/*
 * Programs that the audit rules must find: odd writable | memory | child | preloaded.
 * Each prints the number of the process that is odd, and stays.
 */
#include "lab.h"
#include <sys/mman.h>
#include <sys/syscall.h>

/* An odd program that could not be made odd would be a test of nothing. */
#define TRY(call) do { if ((call) < 0) { perror(#call); _exit(1); } } while (0)

static void stay(void)
{
	printf("%d\n", getpid());
	fflush(stdout);
	close(0);
	close(1);
	close(2);
	for (;;)
		pause();
}

/* As a program that was sent over the network: it never was a file of any directory. */
static void from_memory(char **argv)
{
	static char content[1 << 16];
	char *again[] = { argv[0], "stay", NULL };
	char path[32];
	int self = open("/proc/self/exe", O_RDONLY);
	int fd = syscall(SYS_memfd_create, "kworker/0:9", 0);
	ssize_t size;

	while ((size = read(self, content, sizeof content)) > 0)
		TRY(write(fd, content, size));
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	TRY(execv(path, again));
}

/* A root process below one of another user. */
static void child(void)
{
	if (fork() == 0)
		stay();
	TRY(setresuid(1000, 1000, 1000));
	close(0);
	close(1);
	close(2);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "writable"))
		memset(mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE | PROT_EXEC,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 0x90, 1 << 16);
	else if (!strcmp(what, "memory"))
		from_memory(argv);
	else if (!strcmp(what, "child"))
		child();
	stay();
}
