/*
 * kexec KERNEL INITRAMFS: go on in another kernel, with the command line of this one.
 * kexec KERNEL INITRAMFS OPTIONS: load it for the case that this one crashes, with OPTIONS added.
 */
#include "lab.h"
#include <sys/reboot.h>
#include <sys/syscall.h>

#define ON_CRASH 2UL /* KEXEC_FILE_ON_CRASH */

int main(int argc, char **argv)
{
	char line[4096];
	int kernel, initramfs, fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t got = read(fd, line, sizeof line);

	if (argc < 3 || argc > 4 || got < 1)
		return 2;
	line[got - 1] = 0; /* was the end of the line */
	if (argc == 4)
		snprintf(line + got - 1, sizeof line - got, " %s", argv[3]);
	kernel = open(argv[1], O_RDONLY | O_CLOEXEC);
	initramfs = open(argv[2], O_RDONLY | O_CLOEXEC);
	if (syscall(SYS_kexec_file_load, kernel, initramfs, strlen(line) + 1, line,
		    argc == 4 ? ON_CRASH : 0UL)) {
		fprintf(stderr, "kexec: load: %m\n");
		return 1;
	}
	puts("loaded");
	fflush(stdout);
	if (argc == 4 || fork())
		return 0;
	usleep(500000); /* the answer to the host gets through */
	reboot(0x45584543 /* LINUX_REBOOT_CMD_KEXEC */);
	fprintf(stderr, "kexec: %m\n");
	return 1;
}
