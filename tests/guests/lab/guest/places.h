/* Where they run: files, mounts, control groups, namespaces. */
#include "child.h"
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void copy_program(const char *path)
{
	static char buffer[1 << 16];
	int from = open("/lab/workload", O_RDONLY | O_CLOEXEC);
	int to = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
	ssize_t n;

	while ((n = read(from, buffer, sizeof buffer)) > 0)
		TRY(write(to, buffer, n));
	TRY(from);
	TRY(to);
	close(from);
	close(to);
}

static void deleted(void)
{
	TRY(unlink("/tmp/deleted-program"));
	become("/proc/self/fd/9", (char *[]){ "deleted-program", NULL });
}

static void deleted_program(void)
{
	int fd;

	copy_program("/tmp/deleted-program");
	fd = open("/tmp/deleted-program", O_RDONLY);
	dup3(fd, 9, O_CLOEXEC);
	close(fd);
	spawn("deleted", deleted);
	close(9);
}

static void in_deep_directory(void)
{
	char name[101];

	memset(name, 'd', 100);
	name[100] = 0;
	TRY(chdir("/tmp"));
	for (int i = 0; i < 12; i++) {
		TRY(mkdir(name, 0755));
		TRY(chdir(name));
	}
}

static void in_deleted_directory(void)
{
	TRY(mkdir("/tmp/gone", 0755));
	TRY(chdir("/tmp/gone"));
	TRY(rmdir("/tmp/gone"));
}

static void in_odd_directory(void)
{
	TRY(mkdir("/tmp/odd \x1b[7m\n\\ \xff", 0755));
	TRY(chdir("/tmp/odd \x1b[7m\n\\ \xff"));
}

static void in_chroot(void)
{
	TRY(chroot("/mnt/jail"));
	TRY(chdir("/inside"));
	become("/program", (char *[]){ "/program", "chroot", NULL });
}

static void over_bind(void) { become("/mnt/bound/bin/program", (char *[]){ "bound", NULL }); }

static void mounts(void)
{
	TRY(mkdir("/mnt/jail", 0755));
	TRY(mount("jail", "/mnt/jail", "tmpfs", 0, NULL));
	TRY(mkdir("/mnt/jail/inside", 0755));
	copy_program("/mnt/jail/program");
	spawn("-", in_chroot);

	TRY(mkdir("/mnt/tree", 0755));
	TRY(mount("tree", "/mnt/tree", "tmpfs", 0, NULL));
	TRY(mkdir("/mnt/tree/bin", 0755));
	copy_program("/mnt/tree/bin/program");
	TRY(mkdir("/mnt/bound", 0755));
	TRY(mount("/mnt/tree", "/mnt/bound", NULL, MS_BIND, NULL));
	spawn("-", over_bind);
}

static void join_group(const char *path)
{
	char procs[600];
	int fd;

	snprintf(procs, sizeof procs, "%s/cgroup.procs", path);
	fd = open(procs, O_WRONLY | O_CLOEXEC);
	TRY(write(fd, "0", 1));
	close(fd);
}

static void in_group(void)
{
	TRY(mkdir("/sys/fs/cgroup/system.slice", 0755));
	TRY(mkdir("/sys/fs/cgroup/system.slice/web.service", 0755));
	join_group("/sys/fs/cgroup/system.slice/web.service");
}

static void in_odd_group(void)
{
	TRY(mkdir("/sys/fs/cgroup/odd \x1b[1m\\\xff", 0755));
	join_group("/sys/fs/cgroup/odd \x1b[1m\\\xff");
}

static void in_removed_group(void)
{
	siginfo_t info;
	pid_t pid;

	/* its zombie child stays in a group that can be removed all the same: "(deleted)" */
	TRY(mkdir("/sys/fs/cgroup/brief", 0755));
	join_group("/sys/fs/cgroup/brief");
	pid = fork();
	if (pid == 0)
		_exit(0);
	TRY(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
	join_group("/sys/fs/cgroup");
	/* who has ended may leave the group only when its CPU goes on to another */
	for (int i = 0; i < 5000 && rmdir("/sys/fs/cgroup/brief"); i++)
		usleep(2000);
	TRY(access("/sys/fs/cgroup/brief", F_OK) ? 0 : -1);
}

static void container_init(void)
{
	TRY(sethostname("container", 9));
	spawn("container-child", NULL);
}

static void in_namespaces(void)
{
	TRY(unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC |
		    CLONE_NEWCGROUP));
	spawn("container-init", container_init);
}

static void in_user_namespace(void) { TRY(unshare(CLONE_NEWUSER)); }

static void places(void)
{
	deleted_program();
	spawn("deep-cwd", in_deep_directory);
	spawn("deleted-cwd", in_deleted_directory);
	spawn("odd-cwd", in_odd_directory);
	mounts();
	spawn("grouped", in_group);
	spawn("odd-group", in_odd_group);
	spawn("removed-group", in_removed_group);
	spawn("unsharer", in_namespaces);
	spawn("user-ns", in_user_namespace);
}
