// Command program is the one executable inside the images that critest runs where busybox
// has no counterpart: nginx, httpd, nnp and pause, told apart by the name it was started as.
// It owns the behaviour the specs rely on and may not import anything but the standard
// library: it runs in images that hold nothing else.
// Source: pkg/validate of sigs.k8s.io/cri-tools and the images' upstream Dockerfiles.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

func main() {
	// argv[0] is no help: nginx replaces it by a title.
	path, err := os.Executable()
	if err != nil {
		fail(err)
	}
	switch name := filepath.Base(path); name {
	case "nginx":
		fail(nginx(path))
	case "httpd":
		fail(httpd())
	case "nnp":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
	case "pause":
		pause()
	default:
		fail(fmt.Errorf("run as %q: no such program", name))
	}
}

// fail ends the program as a server that cannot go on.
func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// nginx serves as a master process without workers: title, pid file and log as upstream's
// image has them, because the specs look for them in /proc/1/cmdline and /var/run.
func nginx(path string) error {
	const title = "nginx: master process "
	if !strings.HasPrefix(os.Args[0], title) {
		// The kernel shows the argument strings of the last execve(2); a new one is the
		// way to change them.
		return syscall.Exec(path, []string{title + strings.Join(os.Args, " ")}, os.Environ())
	}
	pidFile := "/var/run/nginx.pid"
	if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644); err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	config := "/etc/nginx/conf.d/default.conf"
	text, err := os.ReadFile(config)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	listen := regexp.MustCompile(`(?m)^\s*listen\s+(\d+);`).FindSubmatch(text)
	if listen == nil {
		return fmt.Errorf("read configuration %s: no listen line", config)
	}
	// In the image this is a link to /dev/stdout, so a runtime must let the workload open
	// its own standard output anew.
	log, err := os.OpenFile("/var/log/nginx/access.log", os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("open access log: %w", err)
	}
	return serve(string(listen[1]), log)
}

// httpd serves on port 80 and announces its command line, which a spec looks for in the log.
func httpd() error {
	fmt.Fprintf(os.Stderr, "Command line: '%s'\n", strings.Join(os.Args, " "))
	return serve("80", os.Stdout)
}

func serve(port string, log *os.File) error {
	return http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(log, "%s %q 200\n", r.RemoteAddr, r.Method+" "+r.URL.Path)
		fmt.Fprint(w, "<html><body><h1>It works!</h1></body></html>\n")
	}))
}

// pause waits to be told to end and reaps what its PID namespace leaves to it.
func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
}
