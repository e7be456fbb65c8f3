package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"toolbroker/gateway"
)

// everyTenant is whom a stop of everything is about.
const everyTenant = "*"

func stopCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "stop", Short: "Stop a workload, an owner, a human, a tenant or everything, and lift it, as an admin", RunE: group}
	var (
		admin  adminFlags
		asJSON bool
	)
	admin.register(cmd)

	// with logs in before do; a command line that cannot be meant needs no login.
	with := func(what *stopWhat, do func(cmd *cobra.Command, a *adminClient) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, _ []string) error {
			if err := what.check(); err != nil {
				return err
			}
			a, err := admin.login(cmd.Context())
			if err != nil {
				return err
			}
			defer a.close()
			return do(cmd, a)
		}
	}

	var (
		set, lift stopWhat
		reason    string
	)
	setting := &cobra.Command{
		Use:   "set (--principal W | --owner O | --human H | --all-of-tenant | --everything) --reason TEXT",
		Short: "Stop: what it is about ends at once, and nothing like it starts until the stop is lifted",
		Args:  exactly(),
		RunE: with(&set, func(cmd *cobra.Command, a *adminClient) error {
			s, err := set.stop(a)
			if err != nil {
				return err
			}
			s["reason"] = reason
			if err := a.do(cmd.Context(), "POST", "/api/v1/stops", s, nil); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "stopped, until it is lifted")
			return err
		}),
	}
	set.register(setting)
	setting.Flags().StringVar(&reason, "reason", "", "why, for the record")
	required(setting, "reason")

	lifting := &cobra.Command{
		Use:   "lift (--principal W | --owner O | --human H | --standing NAME | --all-of-tenant | --everything)",
		Short: "Lift a stop: tasks may start again, and those that it ended stay ended",
		Args:  exactly(),
		RunE: with(&lift, func(cmd *cobra.Command, a *adminClient) error {
			s, err := lift.stop(a)
			if err != nil {
				return err
			}
			if err := a.do(cmd.Context(), "POST", "/api/v1/stops/lift", s, nil); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "lifted")
			return err
		}),
	}
	lift.register(lifting)
	lifting.Flags().StringVar(&lift.standing, "standing", "", "the implicit task that was ended, as the list of stops names it")

	var tenant string
	list := &cobra.Command{
		Use: "list", Short: "List what is stopped, by whom, since when and why", Args: exactly(),
		RunE: with(nil, func(cmd *cobra.Command, a *adminClient) error {
			t, err := a.tenant(tenant)
			if err != nil {
				return err
			}
			var reply struct {
				Stops []gateway.Stop `json:"stops"`
			}
			if err := a.do(cmd.Context(), "GET", "/api/v1/stops?tenant="+url.QueryEscape(t), nil, &reply); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), reply)
			}
			rows := [][]string{{"TENANT", "KIND", "NAME", "BY", "SINCE", "REASON"}}
			for _, s := range reply.Stops {
				rows = append(rows, []string{s.Tenant, string(s.Kind), s.Name, s.By, stamp(s.At), s.Reason})
			}
			return table(cmd.OutOrStdout(), rows...)
		}),
	}
	list.Flags().StringVar(&tenant, "tenant", "", "whose world; default: your only one")
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(setting, list, lifting)
	return cmd
}

// A stopWhat is the flags that say what a stop is about, one of them at a time.
type stopWhat struct {
	tenant, principal, owner, human, standing string
	all, everything                           bool
}

func (s *stopWhat) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&s.tenant, "tenant", "", "whose world; default: your only one")
	flags.StringVar(&s.principal, "principal", "", "a workload")
	flags.StringVar(&s.owner, "owner", "", "all that an operator is accountable for")
	flags.StringVar(&s.human, "human", "", "all that is on behalf of one")
	flags.BoolVar(&s.all, "all-of-tenant", false, "the tenant's every task")
	flags.BoolVar(&s.everything, "everything", false, "every task of every tenant")
}

// names are what the flags that name something say.
func (s *stopWhat) names() map[gateway.StopKind]string {
	return map[gateway.StopKind]string{
		gateway.StopPrincipal: s.principal, gateway.StopOwner: s.owner, gateway.StopHuman: s.human, gateway.StopStanding: s.standing,
	}
}

// check refuses flags that do not say exactly one thing: a name left empty must
// not become a whole tenant.
func (s *stopWhat) check() error {
	if s == nil {
		return nil
	}
	said := 0
	for _, name := range s.names() {
		if name != "" {
			said++
		}
	}
	for _, yes := range []bool{s.all, s.everything} {
		if yes {
			said++
		}
	}
	switch {
	case said != 1:
		return usage("what? say exactly one of --principal, --owner, --human, --all-of-tenant and --everything")
	case s.everything && s.tenant != "":
		return usage("--everything is of every tenant; drop --tenant, or say --all-of-tenant")
	}
	return nil
}

// stop is what the admin API takes.
func (s *stopWhat) stop(a *adminClient) (map[string]any, error) {
	if s.everything {
		return map[string]any{"tenant": everyTenant, "kind": gateway.StopTenant}, nil
	}
	tenant, err := a.tenant(s.tenant)
	if err != nil {
		return nil, err
	}
	for kind, name := range s.names() {
		if name != "" {
			return map[string]any{"tenant": tenant, "kind": kind, "name": name}, nil
		}
	}
	return map[string]any{"tenant": tenant, "kind": gateway.StopTenant}, nil
}
