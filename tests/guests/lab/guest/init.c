/* PID 1 of the lab's guests: mounts, modules, workload, then the agent that answers the host. */
#include "lab.h"
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static void mount_at(const char *type, const char *path)
{
	mkdir(path, 0755);
	if (mount(type, path, type, 0, NULL) && errno != EBUSY)
		fprintf(stderr, "lab: mount %s: %m\n", path);
}

static void say_on_console(void)
{
	int fd = open("/dev/console", O_RDWR);

	if (fd < 0)
		return;
	for (int i = 0; i < 3; i++)
		dup2(fd, i);
	if (fd > 2)
		close(fd);
}

/* /lab/modules: one "NAME [PARAMETERS]" a line, in the order in which to load them. */
static void load_modules(void)
{
	char line[512], path[600];
	FILE *list = fopen("/lab/modules", "re");

	while (list && fgets(line, sizeof line, list)) {
		char *parameters;
		int fd;

		line[strcspn(line, "\n")] = 0;
		parameters = line + strcspn(line, " ");
		if (*parameters)
			*parameters++ = 0;
		snprintf(path, sizeof path, "/lab/%s.ko", line);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (syscall(SYS_finit_module, fd, parameters, 0))
			fprintf(stderr, "lab: module %s: %m\n", line);
		close(fd);
	}
	if (list)
		fclose(list);
}

static pid_t start(const char *path)
{
	pid_t pid = fork();

	if (pid == 0) {
		char *argv[] = { (char *)path, NULL };
		char *envp[] = { "PATH=/bin", "HOME=/", NULL };

		execve(path, argv, envp);
		fprintf(stderr, "lab: %s: %m\n", path);
		_exit(127);
	}
	return pid;
}

int main(void)
{
	pid_t agent, workload, gone;
	int fd;

	mount_at("devtmpfs", "/dev");
	say_on_console();
	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	mount_at("tmpfs", "/tmp");
	mount_at("cgroup2", "/sys/fs/cgroup");
	sethostname("lab-guest", 9);
	fd = open("/proc/sys/kernel/printk_devkmsg", O_WRONLY | O_CLOEXEC);
	if (write(fd, "on\n", 3) != 3)
		fprintf(stderr, "lab: printk_devkmsg: %m\n");
	close(fd);
	load_modules();
	if (lab_option("workload", 1)) {
		/* Its first process ends when all others are in place. */
		workload = start("/lab/workload");
		while ((gone = wait(NULL)) != workload && gone > 0)
			;
	}
	fprintf(stderr, "lab: ready\n");
	agent = start("/lab/agent");
	for (;;) {
		gone = wait(NULL);
		if (gone == agent) {
			sleep(1);
			agent = start("/lab/agent");
		}
	}
}
