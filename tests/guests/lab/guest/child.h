/* Processes of the workload: started one after the other, each in place before the next. */
#ifndef CHILD_H
#define CHILD_H

#include "lab.h"
#include <poll.h>
#include <sys/prctl.h>
#include <sys/types.h>

static int ready_pipe = -1;

/* Called by a child's body when it is as it shall be seen; spawn() then returns. */
static inline void ready(void)
{
	char byte = 1;

	if (ready_pipe >= 0 && write(ready_pipe, &byte, 1) != 1)
		_exit(1);
	close(ready_pipe);
	ready_pipe = -1;
}

static inline void rest(void)
{
	for (;;)
		pause();
}

/*
 * Start a process called name that runs body and then sleeps for ever. Returns when it is
 * ready: at ready(), at the end of body, or at its exit. On a busy machine that takes its time, and
 * a guest that answers before all are in place is no guest to look at.
 */
static inline pid_t spawn(const char *name, void (*body)(void))
{
	struct pollfd answer = { .events = POLLIN };
	int ends[2];
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC)) {
		perror("lab: pipe");
		return -1;
	}
	pid = fork();
	if (pid == 0) {
		close(ends[0]);
		if (ready_pipe >= 0)
			close(ready_pipe); /* the parent's own */
		ready_pipe = ends[1];
		prctl(PR_SET_NAME, name);
		if (body)
			body();
		ready();
		rest();
	}
	close(ends[1]);
	answer.fd = ends[0];
	if (pid < 0 || poll(&answer, 1, 300000) != 1)
		fprintf(stderr, "lab: %s does not get ready: %m\n", name);
	close(ends[0]);
	return pid;
}

/* For calls whose failure must be seen on the console but need not end the guest. */
#define TRY(call)                                                                      \
	do {                                                                           \
		if ((call) < 0)                                                        \
			fprintf(stderr, "lab: %s: %m\n", #call);                       \
	} while (0)

/*
 * Become another program image: PATH is a copy of this binary, which says that it is ready on
 * the descriptor that LAB_REST names and then only sleeps, whatever its arguments are.
 */
static inline void become(const char *path, char *const argv[])
{
	char variable[32];
	char *envp[] = { variable, NULL };

	snprintf(variable, sizeof variable, "LAB_REST=%d", ready_pipe);
	fcntl(ready_pipe, F_SETFD, 0);
	execve(path, argv, envp);
	fprintf(stderr, "lab: exec %s: %m\n", path);
}

#endif
