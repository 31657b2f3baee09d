/*
 * scale PROCESSES FILES SOCKETS: as many processes, with as many open files and sockets among
 * them, all in one process group of their own. Prints the group's id when all are in place.
 * Every tenth process has four threads, every file is one of its own in a folder of sixteen.
 */
#include "lab.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static void *thread_rests(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void fail(const char *what)
{
	fprintf(stderr, "scale: %s: %m\n", what);
	_exit(1);
}

static void open_file(long number)
{
	char path[64];

	snprintf(path, sizeof path, "/tmp/scale/%02ld/file-%ld", number % 16, number);
	if (open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) < 0)
		fail(path);
}

/* In turn: a TCP listener, a bound UDP socket, a named UNIX socket, an unnamed one. */
static void open_socket(long number)
{
	struct sockaddr_in inet = { .sin_family = AF_INET, .sin_port = htons(20000 + number / 4) };
	struct sockaddr_un local = { .sun_family = AF_UNIX };
	int kind = number % 4, fd;

	fd = socket(kind < 2 ? AF_INET : AF_UNIX, kind == 1 ? SOCK_DGRAM : SOCK_STREAM, 0);
	if (fd < 0)
		fail("socket");
	inet.sin_addr.s_addr = htonl(INADDR_ANY);
	snprintf(local.sun_path, sizeof local.sun_path, "/tmp/scale/socket-%ld", number);
	if (kind < 2 && bind(fd, (void *)&inet, sizeof inet))
		fail("bind");
	if (kind == 2 && bind(fd, (void *)&local, sizeof local))
		fail(local.sun_path);
	if (kind == 0 && listen(fd, 1))
		fail("listen");
}

static long share(long whole, long parts, long index)
{
	return whole * (index + 1) / parts - whole * index / parts;
}

static void one(long index, long processes, long files, long sockets)
{
	static char stacks[3][16384] __attribute__((aligned(4096)));
	pthread_attr_t attributes;
	pthread_t thread;

	for (long i = files * index / processes, n = share(files, processes, index); n > 0; n--)
		open_file(i++);
	for (long i = sockets * index / processes, n = share(sockets, processes, index); n > 0; n--)
		open_socket(i++);
	for (int i = 0; i < 3 && index % 10 == 0; i++) {
		pthread_attr_init(&attributes);
		pthread_attr_setstack(&attributes, stacks[i], sizeof stacks[i]);
		if (pthread_create(&thread, &attributes, thread_rests, NULL))
			fail("pthread_create");
	}
}

int main(int argc, char **argv)
{
	long processes = argc > 1 ? atol(argv[1]) : 10, files = argc > 2 ? atol(argv[2]) : 0;
	long sockets = argc > 3 ? atol(argv[3]) : 0;
	struct rlimit limit = { 65536, 65536 };
	char path[32], byte;
	int ends[2];

	setsid();
	setrlimit(RLIMIT_NOFILE, &limit);
	mkdir("/tmp/scale", 0700);
	for (int i = 0; i < 16; i++) {
		snprintf(path, sizeof path, "/tmp/scale/%02d", i);
		mkdir(path, 0700);
	}
	if (pipe(ends))
		fail("pipe");
	for (long i = 0; i < processes; i++) {
		pid_t pid = fork();

		if (pid < 0)
			fail("fork");
		if (pid)
			continue;
		close(ends[0]);
		for (int fd = 0; fd < 3; fd++)
			close(fd);
		open("/dev/null", O_RDWR);
		one(i, processes, files, sockets);
		if (write(ends[1], "", 1) != 1)
			_exit(1);
		close(ends[1]);
		for (;;)
			pause();
	}
	close(ends[1]);
	for (long i = 0; i < processes; i++)
		if (read(ends[0], &byte, 1) != 1)
			fail("a process is missing");
	close(ends[0]);
	printf("%d\n", getpid());
	fflush(stdout);
	for (int fd = 0; fd < 3; fd++)
		close(fd);
	for (;;)
		pause();
}
