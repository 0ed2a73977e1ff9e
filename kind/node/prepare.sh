#!/bin/bash
# Runs once in a privileged container of the node's base image, before it is committed: the steps of kind's
# images/base/Dockerfile and of `kind build node-image`. $1: Kubernetes' version; /images.tar: images to preload.
set -euo pipefail
version=$1

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

containerd > /tmp/containerd.log 2>&1 &
containerd=$!
for _ in $(seq 300); do
  if ctr version > /dev/null 2>&1; then break; fi
  kill -0 "$containerd" || { cat /tmp/containerd.log >&2; exit 1; }
  sleep 0.1
done
ctr -n k8s.io images import --label=io.cri-containerd.pinned=pinned --all-platforms --no-unpack --digests /images.tar
have=$(ctr -n k8s.io images list -q)
for image in $(kubeadm config images list --kubernetes-version "$version" 2> /dev/null | grep -v /pause:); do
  grep -qxF "$image" <<< "$have" || { echo "kubeadm of $version wants $image, which was not built" >&2; exit 1; }
done
kill "$containerd"
wait "$containerd" || [ $? -eq 143 ] || [ $? -eq 0 ]
rm -rf /images.tar /tmp/containerd.log /kind/prepare.sh /run/containerd
