//! Job control's view of this process: its process group, session and terminal (credentials(7)).
//!
//! All of it is read from `/proc`. The leader of the group or of the session may be outside of this
//! PID namespace (`bwrap --unshare-pid`, `unshare --pid`). Its number is 0 then, as the number of a
//! parent outside (pid_namespaces(7)), which the types of `rustix` do not allow.

/// Numbers from proc_pid_stat(5), in the PID namespace of `/proc`.
struct Stat {
    parent: i32,
    group: i32,
    session: i32,
    /// The foreground process group of the controlling terminal.
    foreground: i32,
}

impl Stat {
    fn of(process: &str) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name before these fields may contain anything, but no later field contains a parenthesis.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut numbers = fields.split(' ').skip(1).map(str::parse);
        let mut number = || numbers.next()?.ok();
        Some(Self {
            parent: number()?,
            group: number()?,
            session: number()?,
            foreground: {
                let _terminal = number()?;
                number()?
            },
        })
    }
}

/// Whether this process's group is the foreground process group of its terminal, or that is unknown.
pub(crate) fn is_in_foreground() -> bool {
    Stat::of("self").is_none_or(|own| own.group == own.foreground)
}

/// Whether the process group is orphaned (setpgid(2)): no ancestor outside of it is in its session.
/// The other members of the group are children of this process or of those ancestors.
pub(crate) fn is_orphaned() -> bool {
    let Some(own) = Stat::of("self") else {
        return true;
    };
    let mut parent = own.parent;
    while parent != 0 {
        match Stat::of(&parent.to_string()) {
            Some(stat) if stat.group == own.group => parent = stat.parent,
            Some(stat) => return stat.session != own.session,
            None => return true,
        }
    }
    // The next ancestor is outside of this namespace, and so is the leader of session 0.
    own.session != 0
}
