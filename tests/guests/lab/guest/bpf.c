/*
 * eBPF programs and maps that stay, and what the kernel says of all there are.
 *
 * bpf hold: loads some, prints "ready", keeps them. bpf list: one line for each.
 */
#include "lab.h"
#include <linux/bpf.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static int bpf(int command, union bpf_attr *attr)
{
	int result = syscall(SYS_bpf, command, attr, sizeof *attr);

	if (result < 0 && errno != ENOENT)
		fprintf(stderr, "bpf: command %d: %m\n", command);
	return result;
}

static int map(int type, const char *name, int key, int value, int entries, int flags)
{
	union bpf_attr attr = { .map_type = type, .key_size = key, .value_size = value,
				.max_entries = entries, .map_flags = flags };

	strncpy(attr.map_name, name, sizeof attr.map_name - 1);
	return bpf(BPF_MAP_CREATE, &attr);
}

static int program(int type, int attach, const char *name, const struct bpf_insn *code, int count)
{
	union bpf_attr attr = { .prog_type = type, .expected_attach_type = attach,
				.insns = (uintptr_t)code, .insn_cnt = count,
				.license = (uintptr_t)"GPL" };

	strncpy(attr.prog_name, name, sizeof attr.prog_name - 1);
	return bpf(BPF_PROG_LOAD, &attr);
}

static void pin(int fd, const char *path)
{
	union bpf_attr attr = { .pathname = (uintptr_t)path, .bpf_fd = fd };

	unlink(path);
	bpf(BPF_OBJ_PIN, &attr);
}

static void hold(void)
{
	struct bpf_insn one[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 1 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	struct bpf_insn call[] = {
		{ .code = BPF_JMP | BPF_CALL, .src_reg = BPF_PSEUDO_CALL, .imm = 1 },
		{ .code = BPF_JMP | BPF_EXIT },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 1 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	struct bpf_insn with_map[] = {
		{ .code = BPF_LD | BPF_IMM | BPF_DW, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD },
		{ 0 },
		one[0],
		one[1],
	};
	union bpf_attr freeze = { 0 };
	struct rlimit much = { RLIM_INFINITY, RLIM_INFINITY }; /* until 5.11 they count as locked */
	int fd, held, unowned[2];

	setrlimit(RLIMIT_MEMLOCK, &much);
	map(BPF_MAP_TYPE_HASH, "lab_hash", 4, 8, 100, 0);
	map(BPF_MAP_TYPE_PERCPU_ARRAY, "", 4, 16, 10, 0);
	map(BPF_MAP_TYPE_RINGBUF, "lab_ring", 0, 0, 4096, 0);
	fd = map(BPF_MAP_TYPE_HASH, "lab_pinned", 1, 1, 7, BPF_F_NO_PREALLOC);
	pin(fd, "/tmp/pins/a map");
	close(fd);
	freeze.map_fd = held = map(BPF_MAP_TYPE_ARRAY, "lab_frozen", 4, 32, 2, 0);
	bpf(BPF_MAP_FREEZE, &freeze);
	program(BPF_PROG_TYPE_SOCKET_FILTER, 0, "lab_filter", one, 2);
	program(BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_INGRESS, "lab_in", one, 2);
	program(BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_EGRESS, "lab_out", one, 2);
	program(BPF_PROG_TYPE_SCHED_CLS, 0, "lab_call", call, 4);
	fd = program(BPF_PROG_TYPE_XDP, 0, "lab_pinned", one, 2);
	pin(fd, "/tmp/pins/program");
	close(fd);
	with_map[0].imm = held;
	fd = program(BPF_PROG_TYPE_SOCKET_FILTER, 0, "lab_attached", with_map, 4);
	socketpair(AF_UNIX, SOCK_DGRAM, 0, unowned);
	setsockopt(unowned[0], SOL_SOCKET, SO_ATTACH_BPF, &fd, sizeof fd);
	close(fd); /* the socket keeps it */
	if (fork() == 0)
		for (;;)
			pause();
	printf("ready\n");
	fflush(stdout);
	close(1);
	for (;;)
		pause();
}

/* Walks the ids of one kind; gives a descriptor of each, and its information. */
static int following(int command, int by_id, __u32 *id, void *info, int size)
{
	union bpf_attr attr = { .start_id = *id };
	int fd;

	if (bpf(command, &attr) < 0)
		return -1;
	*id = attr.next_id;
	attr = (union bpf_attr) { .prog_id = *id };
	fd = bpf(by_id, &attr);
	attr = (union bpf_attr) { .info = { .bpf_fd = fd, .info_len = size,
					    .info = (uintptr_t)info } };
	bpf(BPF_OBJ_GET_INFO_BY_FD, &attr);
	close(fd);
	return 0;
}

static void list(void)
{
	__u32 id = 0, maps[64];

	for (;;) {
		struct bpf_prog_info info = { .nr_map_ids = 64, .map_ids = (uintptr_t)maps };

		if (following(BPF_PROG_GET_NEXT_ID, BPF_PROG_GET_FD_BY_ID, &id, &info, sizeof info))
			break;
		printf("prog %u %u \"%s\" %u %u %llu %u ", info.id, info.type, info.name,
		       info.xlated_prog_len, info.jited_prog_len, info.load_time,
		       info.created_by_uid);
		for (int i = 0; i < BPF_TAG_SIZE; i++)
			printf("%02x", info.tag[i]);
		for (__u32 i = 0; i < info.nr_map_ids; i++)
			printf(" %u", maps[i]);
		printf("\n");
	}
	id = 0;
	for (;;) {
		struct bpf_map_info info = { 0 };

		if (following(BPF_MAP_GET_NEXT_ID, BPF_MAP_GET_FD_BY_ID, &id, &info, sizeof info))
			break;
		printf("map %u %u \"%s\" %u %u %u %u\n", info.id, info.type, info.name, info.key_size,
		       info.value_size, info.max_entries, info.map_flags);
	}
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "hold") == 0)
		hold();
	list();
	return 0;
}
