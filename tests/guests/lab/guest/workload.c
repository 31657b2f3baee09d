/*
 * What the lab's guests run: one of each thing that a process list must get right.
 *
 * Kernel parameters: lab.sleepers=N plain processes (60), lab.busy=N spinning ones (0),
 * lab.oddities=0 leaves only the sleepers, lab.kmsg=N more lines in the kernel log (0).
 */
#include "lab.h"
#include "child.h"
#include "identity.h"
#include "places.h"
#include "states.h"

static void log_line(const char *text)
{
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);

	TRY(write(fd, text, strlen(text)));
	close(fd);
}

/* Level and facility are the syslog priority in front: <facility * 8 + level>. */
static void kernel_log(void)
{
	static const char *const lines[] = {
		"<0>lab: emergency", "<3>lab: error", "<4>lab: warning", "<6>lab: info", "<7>lab: debug",
		"<11>lab: user error", "<30>lab: daemon info", "<190>lab: local7 info",
		"<6>lab: escapes \x1b[31mred\x1b[0m bell \a tab \t backslash \\ end",
		"<6>lab: bytes \xff\xfe\x80 utf-8 \xc3\xa9\xe2\x82\xac end",
		"<6>lab: first line\nlab: second line\nlab: third line", "<6>", "<6> lab: space first",
		NULL
	};
	char text[960], number[64];

	for (int i = 0; lines[i]; i++)
		log_line(lines[i]);
	memset(text, 'L', sizeof text - 1);
	memcpy(text, "<5>lab: long ", 13);
	text[900] = 0;
	log_line(text);
	for (long i = 0, count = lab_option("kmsg", 0); i < count; i++) {
		snprintf(number, sizeof number, "<6>lab: filler %ld", i);
		log_line(number);
	}
	/* Without its line feed, a record stays open for a continuation, unseen by readers. */
	log_line("<6>lab: end\n");
}

static void keeper(void)
{
	char name[32];

	if (lab_option("oddities", 1)) {
		states();
		identities();
		names();
		arguments();
		places();
	}
	for (long i = 0, count = lab_option("sleepers", 60); i < count; i++) {
		snprintf(name, sizeof name, "sleeper-%ld", i);
		spawn(name, NULL);
	}
	kernel_log();
}

int main(int argc, char **argv)
{
	const char *rest_on = getenv("LAB_REST");

	if (rest_on) {
		ready_pipe = atoi(rest_on);
		if (argc > 1)
			retitle(argv);
		ready();
		rest();
	}
	spawn("keeper", keeper);
	return 0;
}
