#!/bin/bash
# Runs once in a privileged container of the node's base image, before it is committed: the steps of kind's
# images/base/Dockerfile and of `kind build node-image`. $1: Kubernetes' version; $2: whether images may lie "unpacked" in
# it or stay "packed"; /images.tar: images to preload.
set -euo pipefail
version=$1
how=$2

chmod 755 /kind /kind/bin /kind/bin/* /usr/local/bin/* /opt/cni/bin/*
# systemd: keep only what a node needs
find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete
rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \
  /lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/sockets.target.wants/*udev* \
  /lib/systemd/system/sockets.target.wants/*initctl* /lib/systemd/system/basic.target.wants/*
echo "ReadKMsg=no" >> /etc/systemd/journald.conf
ln -sf /usr/lib/systemd/systemd /sbin/init
systemctl enable kubelet.service containerd.service undo-mount-hacks.service
# it would register formats with the kernel, which all containers share
systemctl mask systemd-binfmt.service
mkdir -p /etc/kubernetes/manifests

for name in kubeadm kubelet kubectl; do ln -sf kubernetes "/usr/bin/$name"; done
echo "$version" > /kind/version
ctr oci spec \
  | jq '.hooks.createContainer[.hooks.createContainer | length] |= . + {"path": "/kind/bin/mount-product-files.sh"}' \
  | jq 'del(.process.rlimits)' > /etc/containerd/cri-base.json

# Images that lie unpacked in the node image need neither be copied into each node's volume nor unpacked there. Their files
# are lower layers of an overlay then, on a file system that may be one itself: tried out here, on the engine that it is for.
# What is written while they are unpacked lies in a volume: an overlay can't be the upper layer of another.
build=/build/containerd
snapshots=/kind/snapshots
snapshotter=io.containerd.snapshotter.v1.overlayfs
blobs=$build/io.containerd.content.v1.content/blobs/sha256
mkdir -p "$snapshots/try" /build/{upper,work,merged}
unpacked=
if [ "$how" = unpacked ] && mount -t overlay overlay -o "lowerdir=$snapshots/try,upperdir=/build/upper,workdir=/build/work" /build/merged; then
  umount /build/merged
  unpacked=yes
fi
rm -rf "$snapshots/try" /build/{upper,work,merged}

start_containerd() {
  containerd --root "$build" > /tmp/containerd.log 2>&1 &
  containerd=$!
  for _ in $(seq 300); do
    if ctr version > /dev/null 2>&1; then return; fi
    kill -0 "$containerd" || break
    sleep 0.1
  done
  cat /tmp/containerd.log >&2
  exit 1
}
stop_containerd() {
  kill "$containerd"
  wait "$containerd" || [ $? -eq 143 ]
}

start_containerd
if [ "$unpacked" ]; then unpacking=(--snapshotter=overlayfs); else unpacking=(--no-unpack); fi
ctr -n k8s.io images import --label=io.cri-containerd.pinned=pinned --all-platforms --digests \
  "${unpacking[@]}" /images.tar
have=$(ctr -n k8s.io images list -q)
for image in $(kubeadm config images list --kubernetes-version "$version" 2> /dev/null | grep -v /pause:); do
  grep -qxF "$image" <<< "$have" || { echo "kubeadm of $version wants $image, which was not built" >&2; exit 1; }
done
stop_containerd
if [ "$unpacked" ]; then
  # As the node's containerd does (discard_unpacked_layers): what is unpacked needs no archive. Looked at while it stands
  # still, since it collects what belongs to no image (the archive's own index) some time after an import.
  find "$blobs" -type f -size -1024k | while read -r blob; do
    if [ "$(head -c 1 "$blob")" = "{" ]; then jq -r '.layers[]?.digest' "$blob"; fi
  done | sort -u > /build/layers
  while read -r layer; do
    # A deleted file is a mark that the engine would take for one of its own.
    tar --list --file "$blobs/${layer#sha256:}" > /build/files
    if grep -q '\(^\|/\)\.wh\.' /build/files; then
      echo "an image deletes files of its base, which can't lie unpacked in another: $layer" >&2
      exit 1
    fi
  done < /build/layers
  start_containerd
  xargs ctr -n k8s.io content rm < /build/layers > /dev/null
  stop_containerd
  while read -r layer; do rm -f "$blobs/${layer#sha256:}"; done < /build/layers
  for folder in "$build/$snapshotter/snapshots"/*; do
    cp -a "$folder" "$snapshots/"
    rm -rf "$folder"
    ln -s "$snapshots/${folder##*/}" "$folder"
  done
fi
rm -rf /var/lib/containerd
cp -a "$build" /var/lib/containerd
rm -rf /images.tar /tmp/containerd.log /kind/prepare.sh /run/containerd
