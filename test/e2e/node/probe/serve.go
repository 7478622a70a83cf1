package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// serve answers connections to address, each in one way:
//
//	echo   what comes goes back; the end too
//	count  nothing before the end, then how much came
//	first  says something and ends its side, then takes what comes
//	reset  takes one byte, answers "half", and resets
//	flood  writes until it can't
//	hold   says "held" and nothing more
func serve(address, how string) error {
	handle := handlers[how]
	if handle == nil {
		return fmt.Errorf("serve %q: no such way", how)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("serving")
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		// Owner: the process; ends with its connection.
		go func() {
			err := handle(conn.(*net.TCPConn))
			conn.Close()
			fmt.Println("ended", err)
		}()
	}
}

var handlers = map[string]func(*net.TCPConn) error{
	"echo": func(c *net.TCPConn) error { _, err := io.Copy(c, c); return err },
	"count": func(c *net.TCPConn) error {
		n, err := io.Copy(io.Discard, c)
		if err == nil {
			_, err = fmt.Fprintf(c, "%d bytes", n)
		}
		return err
	},
	"first": func(c *net.TCPConn) error {
		_, err := c.Write([]byte("first"))
		if err = errors.Join(err, c.CloseWrite()); err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, c)
		fmt.Println("first took", n)
		return err
	},
	"reset": func(c *net.TCPConn) error {
		if _, err := c.Read(make([]byte, 1)); err != nil {
			return err
		}
		_, err := c.Write([]byte("half"))
		return errors.Join(err, c.SetLinger(0))
	},
	"flood": func(c *net.TCPConn) error {
		piece := make([]byte, 64<<10)
		for {
			if _, err := c.Write(piece); err != nil {
				return err
			}
		}
	},
	"hold": func(c *net.TCPConn) error {
		if _, err := c.Write([]byte("held")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 1))
		return err
	},
}

// windowSize prints the terminal's size as the program's first act.
func windowSize() error {
	size, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return err
	}
	fmt.Printf("%dx%d\n", size.Col, size.Row)
	return nil
}
