/*
 * container GROUP HOSTNAME ROOT SPACES HELPER...
 *
 * Two processes in the control group GROUP, in namespaces of their own: SPACES holds letters of
 * m(nt), u(ts), i(pc), p(id), n(et), or is "-". ROOT is a directory to chroot to, or "-". Their
 * parent is a process that is called, and has the arguments, HELPER. Ends when all is in place.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct { char letter; int flag; } spaces[] = {
	{ 'm', CLONE_NEWNS }, { 'u', CLONE_NEWUTS }, { 'i', CLONE_NEWIPC },
	{ 'p', CLONE_NEWPID }, { 'n', CLONE_NEWNET },
};

static void check(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "container: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static void rest(void)
{
	for (;;)
		pause();
}

static void join(const char *group)
{
	char path[4096], *at;
	int fd;

	snprintf(path, sizeof path, "/sys/fs/cgroup%s/", group);
	for (at = path + strlen("/sys/fs/cgroup/"); (at = strchr(at, '/')); *at++ = '/') {
		*at = 0;
		if (mkdir(path, 0755) && errno != EEXIST)
			check(-1, path);
	}
	strcat(path, "cgroup.procs");
	fd = open(path, O_WRONLY);
	check(fd, path);
	check(write(fd, "0", 1), path);
	close(fd);
}

static void contained(int ready)
{
	const char *root = getenv("CT_ROOT");

	join(getenv("CT_GROUP"));
	if (strchr(getenv("CT_SPACES"), 'u'))
		check(sethostname(getenv("CT_HOST"), strlen(getenv("CT_HOST"))), "sethostname");
	if (*root != '-')
		check(chroot(root) || chdir("/") ? -1 : 0, root);
	if (fork())
		check(write(ready, "1", 1), "ready");
	close(ready);
	rest();
}

static void helper(int ready)
{
	int flags = 0;

	prctl(PR_SET_NAME, getenv("CT_NAME"));
	for (unsigned i = 0; i < sizeof spaces / sizeof *spaces; i++)
		if (strchr(getenv("CT_SPACES"), spaces[i].letter))
			flags |= spaces[i].flag;
	check(unshare(flags), "unshare");
	if (!fork())
		contained(ready);
	close(ready);
	rest();
}

int main(int argc, char **argv)
{
	char byte, text[16];
	int ends[2];

	if (getenv("CT_READY"))
		helper(atoi(getenv("CT_READY")));
	if (argc < 6)
		return 2;
	check(pipe(ends), "pipe");
	if (!fork()) {
		snprintf(text, sizeof text, "%d", ends[1]);
		setenv("CT_READY", text, 1);
		setenv("CT_GROUP", argv[1], 1);
		setenv("CT_HOST", argv[2], 1);
		setenv("CT_ROOT", argv[3], 1);
		setenv("CT_SPACES", argv[4], 1);
		text[0] = 0;
		strncat(text, basename(strdup(argv[5])), 15);
		setenv("CT_NAME", text, 1);
		check(execv("/proc/self/exe", argv + 5), "exec");
	}
	close(ends[1]);
	return read(ends[0], &byte, 1) == 1 ? 0 : 1;
}
