/* What the lab's guest programs share. */
#ifndef LAB_H
#define LAB_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Value of "lab.NAME=…" on the kernel command line, or fallback. */
static inline long lab_option(const char *name, long fallback)
{
	static char line[4096];
	char key[64];
	char *at;
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? 0 : read(fd, line, sizeof line - 1);

	close(fd);
	line[got > 0 ? got : 0] = 0;
	snprintf(key, sizeof key, "lab.%s=", name);
	at = strstr(line, key);
	return at ? strtol(at + strlen(key), NULL, 0) : fallback;
}

#endif
