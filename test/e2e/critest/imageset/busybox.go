package imageset

import v1 "github.com/google/go-containerregistry/pkg/v1"

// The users and groups of upstream's busybox image.
const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
sync:x:4:100:sync:/bin:/bin/sync
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`
	group = `root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
www-data:x:33:
operator:x:37:
users:x:100:
nogroup:x:65534:
`
)

// busyboxLayer is the base of most images. /dev, /proc and /sys are left to the runtime, as
// upstream's image leaves the last two.
func busyboxLayer(dir string) (v1.Layer, error) {
	return newLayerTar().
		tree(dir).
		dir("etc", 0o755).
		file("etc/passwd", 0o644, []byte(passwd)).
		file("etc/group", 0o644, []byte(group)).
		dir("dev", 0o755).
		dir("home", 0o755).
		dir("root", 0o700).
		dir("tmp", 0o1777).
		dir("var", 0o755).
		dir("var/run", 0o755).
		dir("var/www", 0o755).
		layer()
}
