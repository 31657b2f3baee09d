/*
 * Tells the host the guest's own truth, through a virtio-serial port, or, with the kernel
 * parameter lab.console=1, through the console (Xen guests have nothing else).
 *
 * Request: byte OP, u32 length, payload. Answer: records of
 * u32 name length, name, u32 status (an errno, or an exit status), u64 data length, data;
 * a record with an empty name ends the answer. All integers little-endian.
 *
 *   'H'  hello: what was sent comes back       → "hello", where anything was sent
 *   'R'  u32 seconds, shell command          → "stdout", "stderr", "status"
 *   'P'  u32 mode, path, NUL, content        → "put"
 *   'G'  path                                → that path
 *   'S'  snapshot                            → every file of interest, by its path
 */
#include "lab.h"
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>

#define MAX_REQUEST (256u << 20)

static int port = -1;
static char out[1 << 16];
static size_t out_used;

static void flush(void)
{
	size_t sent = 0;

	while (sent < out_used) {
		ssize_t n = write(port, out + sent, out_used - sent);

		if (n > 0)
			sent += n;
		else if (n < 0 && errno != EINTR && errno != EAGAIN)
			break;
	}
	out_used = 0;
}

static void emit(const void *data, size_t size)
{
	const char *from = data;

	while (size) {
		size_t step = sizeof out - out_used;

		if (step > size)
			step = size;
		memcpy(out + out_used, from, step);
		out_used += step;
		from += step;
		size -= step;
		if (out_used == sizeof out)
			flush();
	}
}

static void record(const char *name, uint32_t status, const void *data, uint64_t size)
{
	uint32_t length = strlen(name);

	emit(&length, sizeof length);
	emit(name, length);
	emit(&status, sizeof status);
	emit(&size, sizeof size);
	emit(data, size);
}

/* Everything that can still be read from a descriptor, in a buffer that is reused. */
static char *slurp(int fd, size_t *size)
{
	static char *buffer;
	static size_t room;
	size_t used = 0;

	for (;;) {
		ssize_t n;

		if (room - used < 65536) {
			room = room ? room * 2 : 1 << 20;
			buffer = realloc(buffer, room);
			if (!buffer)
				_exit(1);
		}
		/* Files below /proc/sys refuse to be asked for 4 MiB or more, whatever they have. */
		n = read(fd, buffer + used, room - used < 1 << 20 ? room - used : 1 << 20);
		if (n < 0 && errno == EPIPE) /* /dev/kmsg: records were overwritten meanwhile */
			continue;
		if (n <= 0)
			break;
		used += n;
	}
	*size = used;
	return buffer;
}

static void send_file(const char *path)
{
	size_t size;
	char *data;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0) {
		record(path, errno, "", 0);
		return;
	}
	errno = 0;
	data = slurp(fd, &size);
	record(path, errno == EAGAIN ? 0 : errno, data, size);
	close(fd);
}

static void send_link(const char *path)
{
	static char target[8192];
	ssize_t n = readlink(path, target, sizeof target);

	record(path, n < 0 ? errno : 0, target, n < 0 ? 0 : n);
}

static void send_task(const char *folder, const char *const files[])
{
	char path[600];

	for (int i = 0; files[i]; i++) {
		snprintf(path, sizeof path, "%s/%s", folder, files[i]);
		send_file(path);
	}
}

static void snapshot(void)
{
	static const char *const system[] = {
		"/proc/uptime", "/proc/stat", "/proc/cmdline", "/proc/version", "/proc/meminfo",
		"/proc/iomem", "/proc/modules", "/proc/loadavg", "/proc/sys/kernel/hostname",
		"/proc/sys/kernel/osrelease", "/proc/sys/kernel/tainted", "/sys/kernel/notes",
		"/proc/vmstat", "/proc/self/mountinfo", NULL
	};
	static const char *const of_process[] = {
		"stat", "status", "cmdline", "statm", "cgroup", NULL
	};
	static const char *const of_thread[] = { "stat", "status", NULL };
	static const char *const links[] = { "exe", "cwd", "root", NULL };
	char folder[64], path[512];
	struct dirent *entry, *thread;
	DIR *processes, *threads;

	processes = opendir("/proc");
	while (processes && (entry = readdir(processes))) {
		if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
			continue;
		snprintf(folder, sizeof folder, "/proc/%.16s", entry->d_name);
		send_task(folder, of_process);
		for (int i = 0; links[i]; i++) {
			snprintf(path, sizeof path, "%s/%s", folder, links[i]);
			send_link(path);
		}
		snprintf(path, sizeof path, "%s/task", folder);
		threads = opendir(path);
		while (threads && (thread = readdir(threads))) {
			if (thread->d_name[0] == '.' || !strcmp(thread->d_name, entry->d_name))
				continue;
			snprintf(path, sizeof path, "%s/task/%.16s", folder, thread->d_name);
			send_task(path, of_thread);
		}
		if (threads)
			closedir(threads);
	}
	if (processes)
		closedir(processes);
	for (int i = 0; system[i]; i++)
		send_file(system[i]);
}

/* One read of /dev/kmsg gives one record; each is followed by a NUL here. */
static void kernel_log(void)
{
	static char line[16384];
	char *log = NULL;
	size_t size = 0, room = 0;
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	for (;;) {
		ssize_t n = read(fd, line, sizeof line - 1);

		if (n < 0 && (errno == EPIPE || errno == EINTR))
			continue;
		if (n <= 0)
			break;
		if (size + n + 1 > room) {
			room = room * 2 + sizeof line;
			log = realloc(log, room);
			if (!log)
				_exit(1);
		}
		memcpy(log + size, line, n);
		log[size + n] = 0;
		size += n + 1;
	}
	close(fd);
	record("/dev/kmsg", 0, log, size);
	free(log);
}

static void send_and_close(const char *name, int fd)
{
	size_t size;
	char *data;

	lseek(fd, 0, SEEK_SET);
	data = slurp(fd, &size);
	record(name, 0, data, size);
	close(fd);
}

static void run(const char *payload)
{
	/* Files, not pipes: what a command leaves behind in the background may keep them open. */
	int output = memfd_create("stdout", MFD_CLOEXEC);
	int errors = memfd_create("stderr", MFD_CLOEXEC);
	int status = 0;
	uint32_t seconds;
	pid_t pid;

	memcpy(&seconds, payload, sizeof seconds);
	pid = fork();
	if (pid == 0) {
		char *argv[] = { "sh", "-c", (char *)payload + 4, NULL };
		char *envp[] = { "PATH=/bin", "HOME=/", NULL };
		int null = open("/dev/null", O_RDONLY);

		setsid();
		dup2(null, 0);
		dup2(output, 1);
		dup2(errors, 2);
		execve("/bin/sh", argv, envp);
		_exit(127);
	}
	for (uint32_t waited = 0; waitpid(pid, &status, WNOHANG) == 0; waited++) {
		if (waited / 200 >= seconds) {
			kill(-pid, SIGKILL);
			waitpid(pid, &status, 0);
			break;
		}
		usleep(5000);
	}
	send_and_close("stdout", output);
	send_and_close("stderr", errors);
	record("status", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), "", 0);
}

static void put(const char *payload, size_t size)
{
	const char *path = payload + 4;
	size_t skip = 4 + strlen(path) + 1, done = 0;
	uint32_t mode, status = 0;
	int fd;

	memcpy(&mode, payload, sizeof mode);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
	while (fd >= 0 && skip + done < size) {
		ssize_t n = write(fd, payload + skip + done, size - skip - done);

		if (n <= 0)
			break;
		done += n;
	}
	if (fd < 0 || skip + done < size || fchmod(fd, mode))
		status = errno ? errno : EIO;
	close(fd);
	record("put", status, "", 0);
}

static void receive(void *into, size_t size)
{
	char *at = into;

	while (size) {
		ssize_t n = read(port, at, size);

		if (n > 0) {
			at += n;
			size -= n;
		} else {
			usleep(20000); /* nobody is connected on the host's side yet */
		}
	}
}

static int find_port(void)
{
	char path[300], name[64];
	struct dirent *entry;
	DIR *ports = opendir("/sys/class/virtio-ports");
	int found = -1;

	while (ports && found < 0 && (entry = readdir(ports))) {
		ssize_t n;
		int fd;

		snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		n = read(fd, name, sizeof name - 1);
		close(fd);
		name[n > 0 ? n : 0] = 0;
		if (strncmp(name, "lab.truth", 9))
			continue;
		snprintf(path, sizeof path, "/dev/%s", entry->d_name);
		found = open(path, O_RDWR | O_CLOEXEC);
	}
	if (ports)
		closedir(ports);
	return found;
}

/* The console, from now on without the kernel's messages in between, and byte for byte. */
static int take_console(void)
{
	static const char hello[] = "\nlab: agent\n";
	struct termios how;
	int fd = open("/proc/sys/kernel/printk", O_WRONLY | O_CLOEXEC);

	if (write(fd, "0\n", 2) != 2)
		fprintf(stderr, "lab: printk: %m\n");
	close(fd);
	fd = open("/dev/console", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 || tcgetattr(fd, &how))
		return -1;
	cfmakeraw(&how);
	if (tcsetattr(fd, TCSAFLUSH, &how) || write(fd, hello, sizeof hello - 1) < 0)
		return -1;
	return fd;
}

int main(void)
{
	int (*find)(void) = lab_option("console", 0) ? take_console : find_port;

	while ((port = find()) < 0)
		usleep(50000);
	for (;;) {
		uint32_t size, end[4] = { 0 };
		char op, *payload;

		receive(&op, 1);
		receive(&size, sizeof size);
		if (size > MAX_REQUEST || !(payload = malloc(size + 1)))
			return 1;
		receive(payload, size);
		payload[size] = 0;
		switch (op) {
		case 'H':
			if (size)
				record("hello", 0, payload, size);
			break;
		case 'R': run(payload); break;
		case 'P': put(payload, size); break;
		case 'G': send_file(payload); break;
		case 'S': snapshot(); kernel_log(); break;
		default: break;
		}
		free(payload);
		emit(end, sizeof end);
		flush();
	}
}
