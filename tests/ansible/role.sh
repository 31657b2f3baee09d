# What the test of the role does, on a throw-away copy of this machine. Prints one line a run of
# the playbook: a label and Ansible's recap; and lists what is there after each.
# Arguments: the playbook, a wheel, and "whole" for more runs in check mode.
set -eu
playbook=$1 wheel=$2

play() {
    label=$1
    shift
    ansible-playbook "$playbook" -e "host_wheel=$wheel" "$@" >/tmp/play.log 2>&1 ||
        { cat /tmp/play.log; exit 1; }
    echo "$label: $(grep -o 'changed=[0-9]*' /tmp/play.log)"
}
there() {
    for path in /opt/virtintrospect /usr/local/bin/virt-introspect \
        /usr/local/bin/virt-introspectd /etc/libvirt/hooks/qemu.d/50-virtintrospect \
        /etc/systemd/system/virt-introspectd.service \
        /etc/systemd/system/virt-introspectd.service.d/place.conf \
        /etc/virtintrospect/config.toml /var/lib/virtintrospect; do
        [ ! -e "$path" ] || echo "  $1 $path"
    done
}

there before
play check --check
there checked
play install
there installed
echo "  version $(/usr/local/bin/virt-introspect --version)"
echo "  unit $(grep -h ^ExecStart=/ /etc/systemd/system/virt-introspectd.service.d/place.conf)"
play again
rm /opt/virtintrospect/installed.sha1 # as if pip had failed after the wheel was copied
play repair
play repaired
if [ "$3" = whole ]; then
    play check-again --check
    play remove-check --check -e host_state=absent
    there kept
fi
play remove -e host_state=absent
there left
play remove-again -e host_state=absent
