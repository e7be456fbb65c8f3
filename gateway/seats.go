package gateway

import "errors"

// Whatever waits for a server or a human costs connections and memory for as long as
// it does, and how long that is a server says. So there are only so many seats here
// for the calls under way: of one workload, and of one tenant's together.

// seats are a tenant's that are taken.
type seats struct {
	taken int
	of    map[string]int // each workload's, by its id
}

// sit takes a seat for one more call of p, if one is free. Under g.mu.
func (g *Gateway) sit(p *Principal) (*seats, error) {
	s := g.seats[p.Tenant]
	if s == nil {
		s = &seats{of: map[string]int{}}
		g.seats[p.Tenant] = s
	}
	mine := s.of[p.ID]
	switch {
	case mine >= g.UnderWay:
		g.count(count{kind: overSeats, tenant: p.Tenant, who: p.ID})
		return nil, refuse(TooMany, errors.New("too many calls of the workload under way")).
			say("too many of your calls are under way already; wait until some of them have ended, or cancel those that you need no more, and then call again")
	case s.taken >= g.UnderWayTenant:
		g.count(count{kind: overSeats, tenant: p.Tenant, who: p.ID})
		return nil, refuse(TooMany, errors.New("too many calls of the tenant under way")).
			say("too many calls of this tenant are under way already; try again in a moment")
	}
	s.taken++
	s.of[p.ID] = mine + 1
	return s, nil
}

// rise gives back what sit took; nil is nothing. Under g.mu.
func (g *Gateway) rise(s *seats, p *Principal) {
	if s == nil {
		return
	}
	s.taken--
	if mine := s.of[p.ID] - 1; mine > 0 {
		s.of[p.ID] = mine
		return
	}
	delete(s.of, p.ID)
	if s.taken == 0 {
		delete(g.seats, p.Tenant)
	}
}

// seat takes a seat for what is no call on its way by itself: a handle's call before
// it runs, and a question to a server about its task.
func (g *Gateway) seat(p Principal) (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s, err := g.sit(&p)
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.rise(s, &p)
	}, err
}
