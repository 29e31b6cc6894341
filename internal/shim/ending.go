// SPDX-License-Identifier: Apache-2.0

package shim

import "time"

// leaveLimit is how long a signal lets the shim wait for its containers' end: systemd kills after 90 seconds what is left.
const leaveLimit = 2 * time.Minute

// end stops taking tasks and makes Serve return, unless there are tasks and force is not set.
func (s *service) end(force bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tasks) > 0 && !force {
		return false
	}
	s.endLocked()
	return true
}

// endIdle is end where all containers have ended: their exits are on disk.
func (s *service) endIdle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		if !t.init.ended() {
			return false
		}
	}
	s.endLocked()
	return true
}

// endSoon is endIdle as soon as that is possible, or nothing: whoever takes a machine down waits no longer for its processes.
func (s *service) endSoon() {
	if !s.leaving.CompareAndSwap(false, true) {
		return
	}
	defer s.leaving.Store(false)
	limit := time.NewTimer(leaveLimit)
	defer limit.Stop()
	for !s.endIdle() {
		select {
		case <-s.nextExit():
		case <-s.ending:
			return
		case <-limit.C:
			return
		}
	}
}

// nextExit is closed when a container that runs has ended; without one it is closed now.
func (s *service) nextExit() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		if !t.init.ended() {
			return t.init.exited
		}
	}
	now := make(chan struct{})
	close(now)
	return now
}

// endLocked is idempotent. Preconditions: s.mu is held.
func (s *service) endLocked() {
	if !s.ended {
		s.ended = true
		close(s.ending)
	}
}
