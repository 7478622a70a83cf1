package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// trace tries to take a process over, says how that went, and lets it go.
func trace(pid string) error {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the tracer is a thread
	if err := unix.PtraceSeize(n); err != nil {
		fmt.Println("refused", err)
		return nil
	}
	fmt.Println("traced")
	return nil
}

// hunt tries to take over every process as soon as it is there, for so long, and prints the names of those it had.
func hunt(duration string) error {
	limit, err := time.ParseDuration(duration)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	own, tried, had := os.Getpid(), map[int]bool{}, map[string]bool{}
	for end := time.Now().Add(limit); time.Now().Before(end); {
		letGo()
		dirs, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil || pid == own || tried[pid] && !strings.HasPrefix(commOf(pid), "podwright") {
				continue
			}
			tried[pid] = true
			if unix.PtraceSeize(pid) == nil {
				had[commOf(pid)] = true
			}
		}
	}
	names := make([]string, 0, len(had))
	for name := range had {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Println("tried", len(tried), "had", strings.Join(names, ","))
	return nil
}

// letGo lets those who were taken go on and end: their parents wait for that.
func letGo() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WALL, nil)
		if err != nil || pid <= 0 {
			return
		}
		if status.Stopped() {
			unix.PtraceCont(pid, int(status.StopSignal()))
		}
	}
}

func commOf(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "gone"
	}
	return strings.TrimSpace(string(raw))
}

// ping asks the loopback by a socket that needs no capability (icmp(7), ping_group_range).
func ping() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		fmt.Println("refused", err)
		return nil
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	echo := []byte{8, 0, 0, 0, 0, 0, 0, 1, 'h', 'i'} // the kernel fills in checksum and identifier
	if err := unix.Sendto(fd, echo, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	answer := make([]byte, 64)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	fmt.Println("answered", n)
	return nil
}
