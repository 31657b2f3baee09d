/*
 * stress: processes that fork, exec, map, open and close as fast as they can, until the file
 * /tmp/stress/run is gone. Whatever they ever are or have is a line of /tmp/stress/log: "pid N",
 * "path P", "port N". What has a process's number in its name is that process's own.
 */
#include "lab.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#define PROGRAMS 32
#define PORTS 500

static int log_fd;

static void say(const char *format, ...)
{
	char line[512];
	va_list values;
	int size;

	va_start(values, format);
	size = vsnprintf(line, sizeof line, format, values);
	va_end(values);
	if (write(log_fd, line, size) != size)
		_exit(9);
}

static int going_on(void)
{
	static unsigned rounds;

	return rounds++ % 64 || access("/tmp/stress/run", F_OK) == 0;
}

static void *thread_rests(void *unused)
{
	prctl(PR_SET_NAME, "short-lived");
	usleep(3000);
	return unused;
}

/* A short life, of one of three kinds by its pid. */
static void life(void)
{
	char name[64], program[64], argument[64];
	pthread_t thread[3];
	pid_t pid = getpid();

	snprintf(name, sizeof name, "s%d", pid);
	prctl(PR_SET_NAME, name);
	if (pid % 3 == 0) {
		snprintf(program, sizeof program, "/tmp/stress/x%d", pid % PROGRAMS);
		snprintf(argument, sizeof argument, "arg-%d", pid);
		execv(program, (char *[]){ strrchr(program, '/') + 1, argument, NULL });
	} else if (pid % 3 == 1) {
		for (int i = 0; i < 3; i++)
			pthread_create(&thread[i], NULL, thread_rests, NULL);
		for (int i = 0; i < 3; i++)
			pthread_join(thread[i], NULL);
	} else {
		snprintf(name, sizeof name, "/tmp/stress/d%d", pid % PROGRAMS);
		if (chdir(name) == 0)
			usleep(2000);
	}
	_exit(0);
}

static void forker(void)
{
	prctl(PR_SET_NAME, "forker");
	for (int alive = 0; going_on();) {
		pid_t pid = fork();

		if (pid == 0)
			life();
		say("pid %d\n", pid);
		alive++;
		while (alive > 8 && wait(NULL) > 0)
			alive--;
	}
}

static void made_up(const char *kind, int fd)
{
	struct stat status;

	if (fstat(fd, &status) == 0)
		say("path %s:[%lu]\n", kind, (unsigned long)status.st_ino);
}

static void filer(void)
{
	char path[128], other[128];
	int held[24] = { 0 }, pipes[2];

	prctl(PR_SET_NAME, "filer");
	for (unsigned n = 0; going_on(); n++) {
		int *slot = &held[n % 24];

		if (*slot)
			close(*slot);
		snprintf(path, sizeof path, "/tmp/stress/w%d-%u%s", getpid(), n,
			 n % 5 ? "" : "-with-a-name-that-is-longer-than-what-a-dentry-holds-itself");
		say("path %s\n", path);
		*slot = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (n % 3 == 0) {
			snprintf(other, sizeof other, "/tmp/stress/w%d-r%u", getpid(), n);
			say("path %s\n", other);
			rename(path, other);
			unlink(other);
		} else {
			unlink(path);
		}
		if (n % 4 == 0 && pipe(pipes) == 0) {
			made_up("pipe", pipes[0]);
			close(pipes[0]);
			close(pipes[1]);
		}
		if (n % 50 == 0)
			close(fcntl(*slot, F_DUPFD, 100 + n % 300));
	}
}

static void mapper(void)
{
	char path[128];
	char *areas[32] = { 0 };

	prctl(PR_SET_NAME, "mapper");
	for (unsigned n = 0; going_on(); n++) {
		char **area = &areas[n % 32];
		int fd;

		if (*area)
			munmap(*area, 16384);
		snprintf(path, sizeof path, "/tmp/stress/w%d-m%u", getpid(), n);
		say("path %s\n", path);
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		*area = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
		if (*area == MAP_FAILED)
			*area = NULL;
		else
			mprotect(*area + 4096, 4096, PROT_READ);
		close(fd);
		unlink(path);
	}
}

static void port_of(int fd)
{
	struct sockaddr_in name;
	socklen_t length = sizeof name;

	if (getsockname(fd, (void *)&name, &length) == 0)
		say("port %d\n", ntohs(name.sin_port));
}

static void socketer(int number)
{
	struct sockaddr_in inet = { .sin_family = AF_INET };
	struct sockaddr_un local = { .sun_family = AF_UNIX };
	struct linger at_once = { 1, 0 };
	int fds[4];

	prctl(PR_SET_NAME, "socketer");
	inet.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (unsigned n = 0; going_on(); n++) {
		int port = 20000 + number * PORTS + n % PORTS;

		inet.sin_port = htons(port);
		say("port %d\n", port);
		for (int i = 0; i < 4; i++)
			fds[i] = socket(i == 3 ? AF_UNIX : AF_INET,
					i == 2 ? SOCK_DGRAM : SOCK_STREAM, 0);
		for (int i = 0; i < 4; i++)
			made_up("socket", fds[i]);
		bind(fds[0], (void *)&inet, sizeof inet);
		listen(fds[0], 1);
		fcntl(fds[1], F_SETFL, O_NONBLOCK);
		connect(fds[1], (void *)&inet, sizeof inet);
		port_of(fds[1]);
		bind(fds[2], (void *)&inet, sizeof inet);
		snprintf(local.sun_path, sizeof local.sun_path, "/tmp/stress/w%d-s%u", getpid(), n);
		say("path %s\n", local.sun_path);
		bind(fds[3], (void *)&local, sizeof local);
		unlink(local.sun_path);
		if (n % 2)
			setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
		for (int i = 0; i < 4; i++)
			close(fds[i]);
	}
}

static void start(void (*body)(void))
{
	pid_t pid = fork();

	if (pid == 0) {
		body();
		_exit(0);
	}
	say("pid %d\n", pid);
}

static void first_socketer(void) { socketer(0); }
static void second_socketer(void) { socketer(1); }

int main(int argc, char **argv)
{
	char path[64];

	(void)argv;
	if (argc == 2) { /* one of the programs: a life after exec */
		usleep(2000);
		return 0;
	}
	mkdir("/tmp/stress", 0755);
	log_fd = open("/tmp/stress/log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	close(open("/tmp/stress/run", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	for (int i = 0; i < PROGRAMS; i++) {
		snprintf(path, sizeof path, "/tmp/stress/x%d", i);
		link("/tmp/stress-program", path);
		say("path %s\n", path);
		snprintf(path, sizeof path, "/tmp/stress/d%d", i);
		mkdir(path, 0755);
		say("path %s\n", path);
	}
	say("path /tmp/stress/log\npath /tmp/stress\npid %d\n", getpid());
	setsid();
	if (nice(19) < 0)
		perror("stress: nice");
	/* the lab's agent must get a word in */
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_NAME, "stress");
	start(forker);
	start(forker);
	start(filer);
	start(filer);
	start(mapper);
	start(first_socketer);
	start(second_socketer);
	printf("%d\n", getpid());
	fflush(stdout);
	while (wait(NULL) > 0)
		;
	return 0;
}
